"""Default learning rates: a method's rate at one billion parameters, scaled by model size and adapter.

    rate(N) = rate(1B) · (10⁹ / N)^½      full fine-tuning
              10 · rate(N)                LoRA and QLoRA

The rate at 1B is the default of TRL or of the method's paper, named beside each method. The exponent ½ connects the
rates of published recipes from one size to the next: GPT-3 pretrains with 6e-4 at 125M and 2e-4 at 1.3B parameters
(Brown et al. 2020, table 2.1), Tülu 3 fine-tunes with 5e-6 at 8B and 2e-6 at 70B, and runs DPO with 5e-7 and 2e-7
(Lambert et al. 2024). The factor 10 of adapters is the measured ratio of optimal rates in Schulman et al. 2025 ("LoRA
Without Regret"). Models below ten million parameters, such as the bundled one, use rates of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import doc
from pydantic import StringConstraints

ADAPTER_FACTOR = 10.0
SMALL = 10_000_000
"""Models with fewer parameters use the rates of the bundled model."""


Multiple = Annotated[
    str, StringConstraints(pattern=r"^([1-9]\d*|\d+\.\d*[1-9])x$"), doc("a multiple of the default (0.5x)")
]
"""A learning rate as a multiple of the default, which depends on the model: 0.5x."""


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """The peak learning rates of a method."""

    base: float
    """Full fine-tuning of a model with one billion parameters."""
    nano: float
    """Full fine-tuning of the bundled model."""
    nano_adapter: float | None = None
    """Its LoRA adapter; None is `nano`."""
    kl: float = 0.005
    """KL(policy ‖ initial policy) [nats/token] after the first updates at a suitable rate, for learning_rate=auto."""
    kl_share: float = 0.0
    """The same as a share of the initial loss, for methods that imitate text; replaces `kl` if not 0."""
    from_scratch: float | None = None
    """Randomly initialized weights of one billion parameters; None is `base`."""

    def target(self, loss: float) -> float:
        """The divergence that learning_rate=auto aims at [nats/token]; `loss` is the initial one."""
        return self.kl_share * loss if self.kl_share else self.kl

    def for_model(self, parameters: int, *, adapter: bool = False, from_scratch: bool = False) -> float:
        """The rate for a model with this many parameters, of two significant digits."""
        if parameters < SMALL:
            rate = self.nano_adapter if adapter and self.nano_adapter else self.nano
        else:
            base = self.from_scratch if from_scratch and self.from_scratch else self.base
            rate = base * (1e9 / parameters) ** 0.5 * (ADAPTER_FACTOR if adapter else 1.0)
        return float(f"{rate:.1e}")


def resolve(rate: float | str | None, default: float) -> float | str:
    """A rate as a number: null is the default, 0.5x half of it; auto stays."""
    if rate is None:
        return default
    return float(f"{float(rate[:-1]) * default:.6g}") if isinstance(rate, str) and rate.endswith("x") else rate


def describe(rate: float | str, *, parameters: int, adapter: bool, default: float) -> str:
    """The line of the console: the rate of a run beside the default, where they differ."""
    what = f"{'LoRA' if adapter else 'full fine-tuning'}, {count(parameters)} parameters"
    value = rate if isinstance(rate, str) else f"{rate:g}"
    return f"learning rate {value}: {what}" + ("" if rate == default else f" (default {default:g})")


def count(parameters: int) -> str:
    """A number of parameters with its unit: 1.1M, 135M, 1.2B."""
    unit, letter = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    number = parameters / unit
    return f"{number:.0f}{letter}" if number >= 10 else f"{number:.1f}{letter}"
