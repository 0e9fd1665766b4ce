"""Gradients of a run's policy by several estimators on the same samples: what `postrain probe` measures.

An update of the run has batch_size prompts with group_size completions each. The completions of `factor` updates are
sampled once, from one policy. The gradient of every estimator is computed on the completions of each update, at ratio
1, where all losses of `method.loss` have the same gradient −A ∇log π. evaluation/gradient_noise.py compares them with
the unbiased one: leave-one-out advantages, a sum over tokens, whose mean over all updates is the reference gradient.

Dynamic sampling and curricula are off, since they choose the prompts. For methods without groups only the run's own
gradient is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from postrain.config.tree import instantiate, parse
from postrain.errors import ConfigError
from postrain.evaluation.gradient_noise import GradientQuality, gradient_quality
from postrain.hardware.checkpoint_io import FileCheckpointIO
from postrain.methods.base import Method
from postrain.methods.group_relative import GroupRelative
from postrain.training.components import build
from postrain.training.config import TrainConfig
from postrain.training.key_effects import with_value
from postrain.training.sketch import Sketch

OWN, UNBIASED = "this run", "leave-one-out"
GRPO = "postrain.methods.grpo.GRPO"
HERE = "postrain.training.gradient_probe"
SUM = {"loss_type": "dr_grpo"}
"""A sum over the tokens of a completion, divided by a constant."""
ESTIMATORS: Mapping[str, Mapping[str, Any]] = {
    UNBIASED: {"advantage": "leave_one_out", **SUM},
    "no baseline": {"advantage": f"{HERE}.no_baseline", **SUM},
    "mean of the batch": {"advantage": f"{HERE}.mean_of_batch", **SUM},
    "length-weighted (OPO)": {"advantage": "opo", **SUM},
    "greedy reward (ReMax)": {"advantage": "remax", **SUM},
    "/ mean (MaxRL)": {"advantage": "maxrl", **SUM},
    "/ std of the batch": {"scale_rewards": "batch", **SUM},
    "/ std of the group": {"scale_rewards": "group", **SUM},
    "leave-one-out, dapo": {"advantage": "leave_one_out", "loss_type": "dapo"},
    "leave-one-out, grpo": {"advantage": "leave_one_out", "loss_type": "grpo"},
    "GRPO": {"scale_rewards": "group", "loss_type": "grpo"},
}
"""Settings of GRPO, by name."""
OF_GROUP_SIZES = (UNBIASED, "GRPO")
"""Estimators that are also measured with other group sizes."""
ONE_STEP = {"epochs": 1, "minibatches_per_epoch": 1, "dynamic_sampling": 0, "curriculum": {}}
CARRIED = (
    "missing_eos_penalty", "mask_truncated_completions", "overlong_buffer", "overlong_penalty", "micro_batch_tokens",
)  # fmt: skip
"""Settings of the run that change its rewards, its rows or its memory."""


def no_baseline(rewards: Tensor) -> Tensor:
    """The rewards themselves, [P, G]: REINFORCE (Williams 1992); 0 if unscorable."""
    return rewards.nan_to_num(0.0)


def mean_of_batch(rewards: Tensor) -> Tensor:
    """Rewards minus the mean of all scored ones, [P, G]; 0 if unscorable."""
    return (rewards - rewards.nanmean()).nan_to_num(0.0)


@dataclass(frozen=True)
class Measurement:
    """An estimator at one group size."""

    name: str
    prompts: int
    group_size: int
    quality: GradientQuality

    @property
    def noise_scale(self) -> float:
        """Completions (or rows) of a batch whose SNR is 1: the gradient noise scale."""
        snr = self.quality.snr.value
        return self.prompts * self.group_size / snr if snr > 0 else float("inf")


@dataclass
class Probe:
    """The policy of a run and the methods that compute its gradient."""

    config: Mapping[str, Any]
    """All settings of the run as plain containers."""
    factor: int
    """Number of updates whose samples are drawn."""
    checkpoint: Path | None = None
    """The weights to measure; None for the initial ones."""
    advance: Callable[[], None] = lambda: None
    """Called after each update."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Estimators that do not fit the rewards, with the reason."""

    def __post_init__(self) -> None:
        if self.factor < 3:
            raise ConfigError(f"--factor {self.factor}: expected at least 3 updates, to see how they differ")
        settings = {key: value for key, value in ONE_STEP.items() if key in self.config["method"]}
        if "precompute_ref_log_probs" in self.config["method"]:
            settings["precompute_ref_log_probs"] = False
        self.settings = {**self.config["method"], **settings}
        config = parse(with_value(self.config, "method", self.settings), TrainConfig)
        config.check()
        components = build(config)
        self.method, self.data, self.trainer = components.method, components.data, config.trainer
        if self.checkpoint is not None:
            state = FileCheckpointIO().load_checkpoint(self.checkpoint, weights_only=True)
            self.method.load_state_dict(state["state_dict"], strict=False)
        self.method.to(self.trainer.device)
        for model in (self.method.components.reward, self.method.components.preference):
            if model is not None:
                model.to(self.trainer.device)
        self.parameters = self.method.trainable_parameters()
        self.sketch = Sketch(sum(one.numel() for one in self.parameters), config.seed)

    @property
    def sizes(self) -> tuple[int, int]:
        """Prompts (or rows) and completions of each."""
        return self.settings["batch_size"], self.settings.get("group_size", 1)

    def methods(self, group_size: int, names: tuple[str, ...]) -> dict[str, Method]:
        """The estimators with these names, at a group size with equally many completions."""
        prompts, size = self.sizes
        sizes = {"group_size": group_size, "batch_size": prompts * size // group_size}
        carried = {key: self.settings[key] for key in CARRIED if key in self.settings}
        base = {"_target_": GRPO, **ONE_STEP, **sizes, "micro_batch_tokens": self.method.tokens_per_micro_batch}
        found: dict[str, Method] = {}
        for name in names:
            settings = {**self.settings, **sizes} if name == OWN else {**base, **carried, **ESTIMATORS[name]}
            made = instantiate(settings)
            made.attach(self.method.components)
            found[name] = made.to(self.trainer.device)
        return found

    def own(self) -> list[Measurement]:
        """The run's own gradient, for a method without groups."""
        rows: list[Tensor] = []
        for _, batch in self.batches(self.sizes[0]):
            rows.append(self.gradient(self.method, batch))
        quality = gradient_quality(torch.stack(rows), torch.stack(rows))
        return [Measurement(OWN, *self.sizes, quality)]

    def group(self, group_size: int, names: tuple[str, ...]) -> list[Measurement]:
        """The estimators on the same samples; the unbiased one is always among them."""
        methods = self.methods(group_size, tuple(dict.fromkeys((UNBIASED, *names))))
        prompts = self.sizes[0] * self.sizes[1] // group_size
        found: dict[str, list[Tensor]] = {name: [] for name in methods}
        sampler = methods[UNBIASED]
        assert isinstance(sampler, GroupRelative)
        for update, batch in self.batches(prompts):
            sampler.counters.updates = update
            sampler.accumulated = {}
            with torch.no_grad(), self.trainer.autocast():
                sampled = sampler.sample_groups(batch)
            for name in [*found]:
                # All estimators get the same completions.
                vars(methods[name])["sample_groups"] = lambda _, sampled=sampled: sampled
                try:
                    found[name].append(self.gradient(methods[name], batch))
                except (ConfigError, ValueError) as error:
                    self.skipped[name] = str(error)
                    del found[name]
            del vars(sampler)["sample_groups"]
        unbiased = torch.stack(found[UNBIASED])
        return [
            Measurement(name, prompts, group_size, gradient_quality(torch.stack(rows), unbiased))
            for name, rows in found.items()
        ]

    def batches(self, count: int) -> Iterator[tuple[int, Any]]:
        """The number and the batch of each update."""
        loader = replaced(self.data.train_dataloader(), batch_size=count)
        for update in range(self.factor):
            self.method.counters.updates = update
            yield update, loader.batch(update).to(self.trainer.device)
            self.advance()

    def gradient(self, method: Method, batch: Any) -> Tensor:
        """The sketch of the gradient of one update, [D]."""
        method.accumulated = {}
        for parameter in self.parameters:
            parameter.grad = None
        with self.trainer.autocast():
            with torch.no_grad():
                prepared = method.prepare(batch)
            minibatch = next(iter(method.minibatches(prepared)))
            count = max(1, method.denominator(minibatch))
            for rows in method.micro_batches(minibatch):
                (method.loss_sum(minibatch.select(rows)).total / count).backward()
        return self.sketch(torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters)


def group_sizes(prompts: int, size: int) -> list[int]:
    """Further group sizes with equally many completions: from a quarter of `size` to twice as many."""
    sizes = (size // 4, size // 2, size * 2)
    return [one for one in sizes if one >= 2 and prompts * size % one == 0 and prompts * size > one]
