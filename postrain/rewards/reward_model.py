"""Reward models as rewards: any run of method=reward or method=prm, any directory or Hub name with a scalar head.

They share nothing with the policy but text: prompt and completion are written with the reward model's own template and
tokenizer. Frozen, and not part of the policy's module tree. A process reward model reads all steps of a completion in
one pass. Leaves out normalising scores, which is a method's, and searching, which asks `step_scores` and
`chain_scores`.

Axes: B completions, S steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from postrain.config.places import command
from postrain.data.chat import Template
from postrain.data.conversation import Message, user
from postrain.data.kinds.steps import StepLayout
from postrain.errors import ConfigError
from postrain.models.loading import load_scalar, load_tokenizer
from postrain.models.scoring import in_micro_batches, micro_batches, sequence_scores, step_logits
from postrain.models.sources import ResolvedModel, resolve_for
from postrain.processor import warn_if_slow
from postrain.rewards.base import nan_to_none, none_to_nan
from postrain.rewards.function import row_label
from postrain.types import Count, RewardBatch, Rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(kw_only=True, eq=False)
class OutcomeRewardModel:
    """Pays what a reward model says of the completion, read at its last token."""

    model_based: ClassVar[bool] = True
    """A model's opinion; see `is_model_based`."""

    path: str
    """A run folder of method=reward, a directory, or a Hub name."""
    batch_tokens: Count = 8192
    """Tokens, padding included, that are scored at once: a memory knob that changes no score."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What the reward model computes in."""

    def __post_init__(self) -> None:
        resolved = resolve(self.path)
        if StepLayout.of_model(resolved.tokenizer):
            raise ConfigError(
                f"reward.path={self.path}: a process reward model, which judges steps and not whole answers; use "
                "reward=process"
            )
        self.context = resolved.context
        self.template = Template(load_tokenizer(resolved))
        warn_if_slow("reward.dtype", DTYPES[self.dtype])
        self.model = load_scalar(resolved, dtype=DTYPES[self.dtype]).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> None:
        """Moves the reward model."""
        self.model.to(device)  # type: ignore[arg-type]

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        rows = self.rows(prompts, completions)
        total_B = torch.empty(len(rows), dtype=torch.float32)
        for group in micro_batches(rows.cost(), self.batch_tokens):
            total_B[group] = sequence_scores(self.model, rows.select(group)).float().cpu()
        self._check(total_B, prompts, columns)
        return RewardBatch(total_B, {"learned": nan_to_none(total_B)})

    def _check(self, total_B: Tensor, prompts: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> None:
        """A score that is no number is a fault of the model, not a completion without worth."""
        wrong = (~total_B.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise ConfigError(
                f"reward.path={self.path}: the reward model says {float(total_B[first])} of "
                f"{row_label(first, prompts, columns)}; its weights are broken, or overflow in "
                f"reward.dtype={self.dtype}"
            )

    def rows(self, prompts: Sequence[str], completions: Sequence[str]) -> Rows:
        """The texts as the reward model reads them; one longer than its context loses the start of its prompt."""
        ids = tuple(self._ids(*pair) for pair in zip(prompts, completions, strict=True))
        return Rows(ids, tuple(torch.ones_like(row, dtype=torch.bool) for row in ids), tuple(range(len(ids))))

    def _ids(self, prompt: str, completion: str) -> Tensor:
        parts = self.template.encode_completion((Message("user", prompt),), completion)
        return torch.cat(parts)[-self.context :]


def resolve(path: str) -> ResolvedModel:
    """The reward model at `path`; refuses a language model, whose scalar head would be noise."""
    resolved = resolve_for("reward.path", path, "the run folder of a reward model, or a directory that holds one")
    if resolved.head != "scalar":
        raise ConfigError(
            f"reward.path={path}: a language model, not a reward model; train one first: "
            f"{command('train')} method=reward model=... and give its run folder"
        )
    return resolved


AGGREGATES: Mapping[str, Callable[[Sequence[float]], float]] = {
    "last": lambda steps: steps[-1],
    "min": min,
    "product": math.prod,
    "mean": lambda steps: sum(steps) / len(steps),
}


@dataclass(kw_only=True, eq=False)
class ProcessRewardModel:
    """Pays what the probabilities of a completion's steps come to; one without a step cannot be scored."""

    model_based: ClassVar[bool] = True
    """A model's opinion; see `is_model_based`."""

    path: str
    """A run folder of method=prm, or the directory of such a model."""
    split: str = r"(?<=[.!?])\s+|\n+"
    """A regular expression: where a completion is cut into steps, by default after a sentence and at the end of a line.
    Lines alone: '\\n+'."""
    aggregate: Literal["last", "min", "product", "mean"] = "min"
    """Of the probabilities of the steps; the others are told beside it."""
    batch_tokens: Count = 8192
    """Tokens that are scored at once: a memory knob that changes no score."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """What the reward model computes in."""

    def __post_init__(self) -> None:
        self.border = border(self.split)
        resolved = resolve(self.path)
        layout = StepLayout.of_model(resolved.tokenizer)
        if layout is None:
            raise ConfigError(
                f"reward.path={self.path}: a reward model of whole answers, which knows nothing of steps; use "
                f"reward=learned, or train one of steps: {command('train')} method=prm"
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
        return RewardBatch(none_to_nan(parts[self.aggregate]), {**parts, "steps": counts})

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
