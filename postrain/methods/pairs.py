"""Base of methods trained on preference pairs; both completions of a pair share one copy of their prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from postrain.data.kinds.preference import Pairs
from postrain.methods.base import Method
from postrain.methods.metrics import positive
from postrain.models.scoring import Scores, score
from postrain.types import Batch, Max, Mean

Smoothing = Annotated[float, Ge(0), Lt(0.5)]
"""ε, the assumed share of wrong labels, below 0.5."""


@dataclass(frozen=True)
class PairScores:
    """Scores of the chosen and the rejected completions, padded to one length."""

    chosen: Scores
    rejected: Scores

    @classmethod
    def from_logps(cls, chosen: Sequence[Tensor], rejected: Sequence[Tensor], device: torch.device) -> Self:
        """From the token log-probabilities [T] of each completion; the layout is that of `score_pairs`."""
        logps_BT = pad_sequence([*chosen, *rejected], batch_first=True)
        sizes_B = torch.tensor([len(logps_T) for logps_T in (*chosen, *rejected)])
        mask_BT = torch.arange(logps_BT.shape[1]) < sizes_B[:, None]
        return cls.from_concatenated(Scores(logps_BT.to(device), mask_BT.to(device)))

    @classmethod
    def from_concatenated(cls, both: Scores) -> Self:
        """From scores of all chosen completions followed by all rejected ones."""
        (chosen_BT, rejected_BT), masks = both.logps_BT.chunk(2), both.mask_BT.chunk(2)
        return cls(Scores(chosen_BT, masks[0]), Scores(rejected_BT, masks[1]))

    def select(self, kept_B: Tensor) -> PairScores:
        """The scores of the pairs where `kept_B` is True."""
        sides = (Scores(side.logps_BT[kept_B], side.mask_BT[kept_B]) for side in (self.chosen, self.rejected))
        return PairScores(*sides)


def score_pairs(model: nn.Module, pairs: Pairs) -> PairScores:
    """Scores of the chosen and the rejected completions, from one forward pass."""
    return PairScores.from_concatenated(score(model, pairs.chosen + pairs.rejected))


def lengths(scores: Scores) -> Tensor:
    """Number of tokens of each completion, [B]."""
    return scores.mask_BT.sum(1)


def mean_logps(scores: Scores) -> Tensor:
    """Mean log-probability per token of each completion, [B]."""
    return scores.logps_BT.sum(1) / lengths(scores)


def pair_metrics(chosen_B: Tensor, rejected_B: Tensor, scores: PairScores) -> dict[str, Mean | Max]:
    """Accuracy, margin, rewards, log-probabilities and lengths; `chosen_B` and `rejected_B` are implicit rewards."""
    margin_B, pairs = (chosen_B - rejected_B).detach(), len(chosen_B)
    metrics: dict[str, Mean | Max] = {
        "accuracy": Mean.of_rows(positive(margin_B)),
        "margin": Mean(margin_B.sum(), pairs),
    }
    for name, reward_B, side in (("chosen", chosen_B, scores.chosen), ("rejected", rejected_B, scores.rejected)):
        metrics[f"reward/{name}"] = Mean(reward_B.detach().sum(), pairs)
        metrics[f"logp/{name}"] = Mean(side.logps_BT.detach().sum(), pairs)
        metrics[f"length/{name}"] = Mean(lengths(side).sum(), pairs)
    return metrics


class PairMethod(Method):
    """Base of methods whose loss is a mean over preference pairs."""

    kind: ClassVar[str] = "Preference"
    expected_change: ClassVar[tuple[str, float]] = ("eval/accuracy", 0.15)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "accuracy", "eval/accuracy")

    def denominator(self, batch: Batch) -> int:
        return len(batch)
