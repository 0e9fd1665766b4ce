"""A local model that answers questions with the letters A and B. It does not generate: an answer is the probability of
one letter against the other, after the question.

Axes: R questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from postrain.data.chat import Template
from postrain.data.conversation import user
from postrain.errors import ConfigError
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.micro_batches import in_micro_batches
from postrain.models.reference import in_eval_mode
from postrain.models.scoring import score
from postrain.models.sources import resolve_for
from postrain.processor import warn_if_slow
from postrain.rewards.reward_model import DTYPES
from postrain.types import Count, Rows

LETTERS = ("A", "B")


@dataclass(kw_only=True, eq=False)
class LocalJudge:
    """A frozen local model that judges; base of `SelfJudge` and `LocalRubric`."""

    model_based: ClassVar[bool] = True
    """See `is_model_based`."""

    path: str
    """Run folder, directory, .gguf file or Hub name of a language model."""
    micro_batch_tokens: Count = 8192
    """Tokens per forward pass; affects memory and speed only."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the model."""

    def __post_init__(self) -> None:
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

    def probabilities_of_a(self, questions: Sequence[str]) -> Tensor:
        """See the function of this name."""
        return probabilities_of_a(self.model, self.template, questions, self.context, self.micro_batch_tokens)


def probabilities_of_a(
    model: nn.Module, template: Template, questions: Sequence[str], context: int, micro_batch_tokens: int
) -> Tensor:
    """σ(log P(A) − log P(B)) after each question, float32 on the CPU, [R]; NaN for one beyond the context."""
    rows = [_encode_answer(template, question, letter) for question in questions for letter in LETTERS]
    fitting = [index for index, (ids, _) in enumerate(rows) if len(ids) <= context]
    logps_R2 = torch.full((len(rows),), torch.nan)
    if fitting:
        ids, supervised = zip(*(rows[index] for index in fitting), strict=True)
        batch = Rows(ids, supervised, tuple(fitting))
        with in_eval_mode(model):
            found = in_micro_batches(partial(score, model), batch, micro_batch_tokens)
        logps_R2[fitting] = found.logps_BT.sum(1).float().cpu()
    logps_R2 = logps_R2.view(len(questions), 2)
    return torch.sigmoid(logps_R2[:, 0] - logps_R2[:, 1])


def _encode_answer(template: Template, question: str, letter: str) -> tuple[Tensor, Tensor]:
    """Ids of a question with a letter as its answer, without the end token, and the mask of the letter; [L] each."""
    prompt, answer = template.encode_completion(user(question), letter)
    letters = answer[: next(index for index, token in enumerate(answer.tolist()) if token in template.stop_ids)]
    ids = torch.cat([prompt, letters])
    return ids, torch.arange(len(ids)) >= len(prompt)
