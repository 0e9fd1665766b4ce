"""A language model in this process as a judge of pairs, by a list of principles: the labels of constitutional AI
(Bai et al. 2022, section 4.1). It need not write: the choice is read off the log-probabilities of the letters A and B
after a question that offers both answers, in both orders, once for each principle.

The policy itself, an earlier run or any other model may judge. Small models judge badly (SmolLM2-135M tells polite from
rude replies no better than a coin), so measure one on pairs of known order before it teaches anybody. Leaves out
writing critiques and revisions: rollout/revise.py.

Axes: B comparisons, R questions (B × principles × 2 orders), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from postrain.data.chat import Template
from postrain.data.conversation import user
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.reference import in_eval_mode
from postrain.models.scoring import in_micro_batches, score
from postrain.models.sources import resolve_for
from postrain.processor import warn_if_slow
from postrain.rewards.learned import DTYPES
from postrain.types import ConfigError, Count, Rows

Columns = Sequence[Mapping[str, Any]]
LETTERS = ("A", "B")

QUESTION = """\
Request: {prompt}

A: {first}

B: {second}

Question: {principle}
Answer with the letter A or B."""


@dataclass(kw_only=True, eq=False)
class SelfJudge:
    """P(first beats second) by a model's own choice of letters."""

    guess: ClassVar[bool] = True
    """A model's opinion; see `is_guess`."""

    path: str
    """A run folder, a directory, a .gguf file or a Hub name of a language model."""
    principles: tuple[str, ...]
    """What makes a reply good, a sentence each; they count equally."""
    batch_tokens: Count
    """Tokens that are scored at once: a memory knob that changes no preference."""
    dtype: Literal["fp32", "bf16"]

    def __post_init__(self) -> None:
        if not self.principles:
            raise ConfigError("reward.principles: expected at least one sentence that says what makes a reply good")
        resolved = resolve_for("reward.path", self.path, "the run folder or directory of a language model")
        try:
            warn_if_slow("reward.dtype", DTYPES[self.dtype])
            self.model: nn.Module = load_causal(resolved, dtype=DTYPES[self.dtype]).requires_grad_(False)
        except ConfigError as error:
            raise ConfigError(str(error).replace("model.path", "reward.path")) from None
        self.context = resolved.context
        self.template = Template(load_tokenizer(resolved))

    def to(self, device: torch.device | str) -> None:
        """Moves the judge."""
        self.model.to(device)

    def beats(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str], columns: Columns) -> Tensor:
        """P(first beats second | prompt), float32 [B]; NaN where the question does not fit the model's context."""
        return preferred(
            self.model,
            self.template,
            list(zip(prompts, first, second, strict=True)),
            principles=self.principles,
            context=self.context,
            batch_tokens=self.batch_tokens,
        )


def preferred(
    model: nn.Module,
    template: Template,
    pairs: Sequence[tuple[str, str, str]],
    *,
    principles: Sequence[str],
    context: int,
    batch_tokens: int,
) -> Tensor:
    """P(the first reply is better) for each (prompt, first, second), on the CPU, [B].

    The mean over principles and orders of σ(log P(its letter) − log P(the other's)); NaN where a question is longer
    than `context`.
    """
    asked = [
        QUESTION.format(prompt=prompt, first=one, second=other, principle=principle)
        for prompt, *replies in pairs
        for principle in principles
        for one, other in (replies, replies[::-1])
    ]
    rows = [_answered(template, question, letter) for question in asked for letter in LETTERS]
    fitting = [place for place, (ids, _) in enumerate(rows) if len(ids) <= context]
    logps_R2 = torch.full((len(rows),), torch.nan)
    if fitting:
        ids, supervised = zip(*(rows[place] for place in fitting), strict=True)
        with in_eval_mode(model):
            found = in_micro_batches(partial(score, model), Rows(ids, supervised, tuple(fitting)), batch_tokens)
        logps_R2[fitting] = found.logps_BT.sum(1).float().cpu()
    logps_B22 = logps_R2.view(len(pairs), len(principles), 2, 2)
    first_BK2 = torch.sigmoid(logps_B22[..., 0] - logps_B22[..., 1])
    # In the second order the first reply is B.
    return torch.stack([first_BK2[..., 0], 1 - first_BK2[..., 1]]).mean((0, 2))


def _answered(template: Template, question: str, letter: str) -> tuple[Tensor, Tensor]:
    """Ids of a question answered with a letter, without what would end it, and where the letter stands; [L] each."""
    prompt, answer = template.encode_completion(user(question), letter)
    said = answer[: next(place for place, token in enumerate(answer.tolist()) if token in template.stop_ids)]
    ids = torch.cat([prompt, said])
    return ids, torch.arange(len(ids)) >= len(prompt)
