"""A process reward model as a reward: any run of method=prm. A completion is cut into steps, each step gets the
probability that it is right given all before it, and one number is made of them.

Like a learned reward it shares nothing with the policy but text. All steps of a completion are read in one pass. Leaves
out searching: `step_scores` and `chain_scores` are what a search asks.

Axes: B completions, S steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from postrain.data.chat import Template
from postrain.data.conversation import user
from postrain.data.kinds.steps import StepLayout
from postrain.models.loading import load_scalar, load_tokenizer
from postrain.models.scoring import in_micro_batches, step_logits
from postrain.processor import warn_if_slow
from postrain.rewards.base import total_of
from postrain.rewards.learned import DTYPES, resolve
from postrain.types import ConfigError, Count, RewardBatch, Rows

AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "product": math.prod,
    "mean": lambda steps: sum(steps) / len(steps),
}


@dataclass(kw_only=True, eq=False)
class Process:
    """Pays what the probabilities of a completion's steps come to; one without a step cannot be scored."""

    guess: ClassVar[bool] = True
    """A model's opinion; see `is_guess`."""

    path: str
    """A run folder of method=prm, or the directory of such a model."""
    split: str
    """A regular expression: where a completion is cut into steps."""
    aggregate: Literal["last", "min", "product", "mean"]
    """Of the probabilities of the steps; the others are told beside it."""
    batch_tokens: Count
    """Tokens that are scored at once: a memory knob that changes no score."""
    dtype: Literal["fp32", "bf16"]

    def __post_init__(self) -> None:
        self.border = border(self.split)
        resolved = resolve(self.path)
        layout = StepLayout.of_model(resolved.tokenizer)
        if layout is None:
            raise ConfigError(
                f"reward.path={self.path}: a reward model of whole answers, which knows nothing of steps; use "
                "reward=learned, or train one of steps: python train.py method=prm"
            )
        self.layout = layout
        self.context = resolved.context
        self.template = Template(load_tokenizer(resolved))
        warn_if_slow("reward.dtype", DTYPES[self.dtype])
        self.model = load_scalar(resolved, dtype=DTYPES[self.dtype]).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> None:
        """Moves the model."""
        self.model.to(device)  # type: ignore[arg-type]

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        scores = self.step_scores(prompts, completions)
        parts = {
            name: tuple(aggregate(steps) if steps else None for steps in scores)
            for name, aggregate in AGGREGATES.items()
        }
        counts = tuple(float(len(steps)) for steps in scores)
        return RewardBatch(total_of(parts[self.aggregate]), {**parts, "steps": counts})

    def step_scores(self, prompts: Sequence[str], completions: Sequence[str]) -> list[tuple[float, ...]]:
        """The probability that each step of each completion is right; none where there is no step."""
        return self.chain_scores(prompts, [self.steps(completion) for completion in completions])

    def steps(self, completion: str) -> tuple[str, ...]:
        """A completion cut into steps, without the white space around them."""
        return tuple(step for piece in self.border.split(completion) if (step := piece.strip()))

    def chain_scores(self, prompts: Sequence[str], chains: Sequence[Sequence[str]]) -> list[tuple[float, ...]]:
        """The same of chains that are in steps already; none where the steps alone are longer than the context."""
        encoded = [self._row(*pair) for pair in zip(prompts, chains, strict=True)]
        there = [place for place, row in enumerate(encoded) if row is not None]
        found: list[tuple[float, ...]] = [()] * len(encoded)
        if not there:
            return found
        ids, marks = zip(*(row for row in encoded if row is not None), strict=True)
        rows = Rows(ids, marks, tuple(there))
        logits_BS = in_micro_batches(lambda part: step_logits(self.model, part), rows, self.batch_tokens)
        for place, steps_S in zip(there, logits_BS.sigmoid().cpu().tolist(), strict=True):
            found[place] = tuple(steps_S[: len(chains[place])])
        return found

    def _row(self, prompt: str, steps: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Ids and marks of a chain; one longer than the context loses the start of its prompt."""
        if not steps:
            return None
        chain = self.layout.chain(self.template, user(prompt), steps)
        ids, marks = chain.row()
        over = max(0, len(ids) - self.context)
        return None if over and over >= len(chain.prompt) else (ids[over:], marks[over:])


def border(split: str) -> re.Pattern[str]:
    """The expression that cuts a completion, which must not put what it matches among the steps."""
    try:
        found = re.compile(split)
    except re.error as error:
        raise ConfigError(f"reward.split={split}: no regular expression ({error}); try '\\n+'") from None
    if found.groups:
        raise ConfigError(f"reward.split={split}: a group would become a step; write (?:...) instead of (...)")
    return found
