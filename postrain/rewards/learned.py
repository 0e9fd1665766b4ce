"""A reward model as a reward: any run of method=reward, or any directory or Hub name with one scalar for a head.

It shares nothing with the policy but text: prompt and completion are written with the reward model's own template and
tokenizer. Frozen, and no part of the policy's module tree. Leaves out normalising its scores: that is a method's.

Axes: B completions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.conversation import Message
from postrain.data.kinds.steps import StepLayout
from postrain.models.loading import load_scalar, load_tokenizer
from postrain.models.scoring import micro_batches, scalar
from postrain.models.sources import ResolvedModel, resolve_for
from postrain.processor import warn_if_slow
from postrain.rewards.base import optional
from postrain.rewards.function import told
from postrain.types import ConfigError, Count, RewardBatch, Rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(kw_only=True, eq=False)
class Learned:
    """Pays what a reward model says of the completion, read at its last token."""

    guess: ClassVar[bool] = True
    """A model's opinion; see `is_guess`."""

    path: str
    """A run folder of method=reward, a directory, or a Hub name."""
    batch_tokens: Count
    """Tokens, padding included, that are scored at once: a memory knob that changes no score."""
    dtype: Literal["fp32", "bf16"]

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
            total_B[group] = scalar(self.model, rows.select(group)).float().cpu()
        self._check(total_B, prompts, columns)
        return RewardBatch(total_B, {"learned": optional(total_B)})

    def _check(self, total_B: Tensor, prompts: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> None:
        """A score that is no number is a fault of the model, not a completion without worth."""
        wrong = (~total_B.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise ConfigError(
                f"reward.path={self.path}: the reward model says {float(total_B[first])} of "
                f"{told(first, prompts, columns)}; its weights are broken, or overflow in reward.dtype={self.dtype}"
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
            "python train.py method=reward model=... and give its run folder"
        )
    return resolved
