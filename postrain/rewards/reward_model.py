"""Outcome and process reward models: runs of method=reward or method=prm, directories or Hub names with a scalar head.

They receive text, which they encode with their own chat template and tokenizer: the turns of a prompt are rendered as
in their training, from the column `messages` or from the transcript. They are frozen and not part of the
policy's module tree. A process reward model scores all steps of a completion in one forward pass. Leaves out score
normalisation, which belongs to the methods, and search, which uses `step_scores` and `chain_scores`.

Axes: B completions, S steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from postrain.config.paths import command
from postrain.data.chat import Template
from postrain.data.conversation import Messages, user, without_tools
from postrain.data.kinds.steps import StepLayout
from postrain.data.rendering import prompt_messages
from postrain.data.sentences import SENTENCE_END, sentences
from postrain.errors import ConfigError, RowError
from postrain.models.loading import load_scalar, load_tokenizer
from postrain.models.micro_batches import in_micro_batches, micro_batches
from postrain.models.scoring import sequence_scores, step_logits
from postrain.models.sources import ResolvedModel, resolve_for
from postrain.processor import warn_if_slow
from postrain.rewards.base import Columns, nan_to_none, none_to_nan
from postrain.rewards.function import row_label
from postrain.types import Count, RewardBatch, Rows

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
EncodedT = TypeVar("EncodedT")


@dataclass(kw_only=True, eq=False)
class RewardModel:
    """A frozen model with a scalar head, and its template."""

    model_based: ClassVar[bool] = True
    """See `is_model_based`."""

    path: str
    """Run folder of method=reward or method=prm, directory of such a model, or Hub name."""
    micro_batch_tokens: Count = 8192
    """Tokens per forward pass, padding included; affects memory and speed only."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the reward model."""

    def load(self, resolved: ResolvedModel) -> None:
        """Reads tokenizer and weights."""
        self.context = resolved.context
        self.template = Template(load_tokenizer(resolved))
        warn_if_slow("reward.dtype", DTYPES[self.dtype])
        self.model = load_scalar(resolved, dtype=DTYPES[self.dtype]).eval().requires_grad_(False)

    def to(self, device: torch.device | str) -> None:
        """Moves the reward model."""
        self.model.to(device)  # type: ignore[arg-type]


@dataclass(kw_only=True, eq=False)
class OutcomeRewardModel(RewardModel):
    """The score of a reward model at the last token of the completion."""

    def __post_init__(self) -> None:
        resolved = resolve_reward_model(self.path)
        if StepLayout.of_model(resolved.tokenizer):
            raise ConfigError(
                f"reward.path={self.path}: a process reward model, which scores steps, not whole completions; use "
                "reward=process"
            )
        self.load(resolved)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        rows = self.rows(prompts, completions, columns)
        total_B = torch.empty(len(rows), dtype=torch.float32)
        for group in micro_batches(rows.cost(), self.micro_batch_tokens):
            total_B[group] = sequence_scores(self.model, rows.select(group)).float().cpu()
        self._check(total_B, prompts, columns)
        return RewardBatch(total_B, {"learned": nan_to_none(total_B)})

    def _check(self, total_B: Tensor, prompts: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> None:
        """Raises ConfigError for a score that is not finite: the model is broken."""
        wrong = (~total_B.isfinite()).nonzero()
        if len(wrong):
            first = int(wrong[0])
            raise ConfigError(
                f"reward.path={self.path}: the reward model returns {float(total_B[first])} for "
                f"{row_label(first, prompts, columns)}; its weights are broken, or overflow in "
                f"reward.dtype={self.dtype}"
            )

    def rows(self, prompts: Sequence[str], completions: Sequence[str], columns: Columns) -> Rows:
        """Encoded texts; those longer than the context lose the beginning of their prompt."""
        ids = tuple(self._ids(*row) for row in zip(prompts, completions, columns, strict=True))
        return Rows(ids, tuple(torch.ones_like(row, dtype=torch.bool) for row in ids), tuple(range(len(ids))))

    def _ids(self, prompt: str, completion: str, columns: Mapping[str, Any]) -> Tensor:
        parts = encode_turns(lambda turns: self.template.encode_completion(turns, completion), prompt, columns)
        return torch.cat(parts)[-self.context :]


def encode_turns(encode: Callable[[Messages], EncodedT], prompt: str, columns: Mapping[str, Any]) -> EncodedT:
    """The encoded turns of a prompt, as in a row of the reward model's training data. A chat template that cannot
    render tools gets the turns without them, and one that cannot render the roles gets the text as one user message."""
    turns = prompt_messages(prompt, columns)
    for rendered in (turns, without_tools(turns)):
        try:
            return encode(rendered)
        except RowError:
            continue
    return encode(user(prompt))


def resolve_reward_model(path: str) -> ResolvedModel:
    """The reward model at `path`. Raises ConfigError for a language model, whose scalar head would be random."""
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
class ProcessRewardModel(RewardModel):
    """An aggregate of the step probabilities of a process reward model; None for a completion without steps."""

    step_separator: str = SENTENCE_END
    """Regular expression at which a completion is split into steps; default: after sentences and at line ends. Lines
    only: '\\n+'."""
    aggregate: Literal["last", "min", "product", "mean"] = "min"
    """Aggregate of the step probabilities; the others are logged too."""

    def __post_init__(self) -> None:
        self.pattern = compile_separator(self.step_separator)
        resolved = resolve_reward_model(self.path)
        layout = StepLayout.of_model(resolved.tokenizer)
        if layout is None:
            raise ConfigError(
                f"reward.path={self.path}: an outcome reward model, which does not score steps; use "
                f"reward=learned, or train a process reward model: {command('train')} method=prm"
            )
        self.layout = layout
        self.load(resolved)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        scores = self.step_scores(prompts, completions, columns)
        parts = {
            name: tuple(aggregate(steps) if steps else None for steps in scores)
            for name, aggregate in AGGREGATES.items()
        }
        counts = tuple(float(len(steps)) for steps in scores)
        return RewardBatch(none_to_nan(parts[self.aggregate]), {**parts, "steps": counts})

    def step_scores(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Columns
    ) -> list[tuple[float, ...]]:
        """The probability that each step is correct, per completion; empty if there are no steps."""
        return self.chain_scores(prompts, [self.steps(completion) for completion in completions], columns)

    def steps(self, completion: str) -> tuple[str, ...]:
        """A completion split into steps, without surrounding white space."""
        return tuple(sentences(completion, self.pattern))

    def chain_scores(
        self, prompts: Sequence[str], chains: Sequence[Sequence[str]], columns: Columns
    ) -> list[tuple[float, ...]]:
        """The same for completions already split into steps; empty if the steps alone exceed the context."""
        encoded = [self._row(*row) for row in zip(prompts, chains, columns, strict=True)]
        present = [index for index, row in enumerate(encoded) if row is not None]
        found: list[tuple[float, ...]] = [()] * len(encoded)
        if not present:
            return found
        ids, marks = zip(*(row for row in encoded if row is not None), strict=True)
        rows = Rows(ids, marks, tuple(present))
        logits_BS = in_micro_batches(lambda part: step_logits(self.model, part), rows, self.micro_batch_tokens)
        for index, steps_S in zip(present, logits_BS.sigmoid().cpu().tolist(), strict=True):
            found[index] = tuple(steps_S[: len(chains[index])])
        return found

    def _row(self, prompt: str, steps: Sequence[str], columns: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Ids and step-end mask of a chain; one longer than the context loses the beginning of its prompt."""
        if not steps:
            return None
        chain = encode_turns(lambda turns: self.layout.chain(self.template, turns, steps), prompt, columns)
        ids, marks = chain.row()
        over = max(0, len(ids) - self.context)
        return None if over and over >= len(chain.prompt) else (ids[over:], marks[over:])


def compile_separator(separator: str) -> re.Pattern[str]:
    """The compiled expression; it must have no groups, whose matches `split` would return as steps."""
    try:
        found = re.compile(separator)
    except re.error as error:
        raise ConfigError(
            f"reward.step_separator={separator}: not a regular expression ({error}); try '\\n+'"
        ) from None
    if found.groups:
        raise ConfigError(
            f"reward.step_separator={separator}: a group would become a step; write (?:...) instead of (...)"
        )
    return found
