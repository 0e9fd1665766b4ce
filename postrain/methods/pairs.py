"""Base of methods that learn from preference pairs: both sides are scored behind one copy of their prompt."""

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
from postrain.methods.metrics import count_positive
from postrain.models.scoring import Scores, score
from postrain.types import Batch, Max, Mean

Smoothing = Annotated[float, Ge(0), Lt(0.5)]
"""ε, the share of labels taken to be wrong."""


@dataclass(frozen=True)
class PairScores:
    """Scores of both sides of pairs, padded to one width."""

    chosen: Scores
    rejected: Scores

    @classmethod
    def of(cls, chosen: Sequence[Tensor], rejected: Sequence[Tensor], device: torch.device) -> Self:
        """Log-probabilities [T] of each completion, laid out as `score_pairs` does, on `device`."""
        logps_BT = pad_sequence([*chosen, *rejected], batch_first=True)
        sizes_B = torch.tensor([len(logps_T) for logps_T in (*chosen, *rejected)])
        mask_BT = torch.arange(logps_BT.shape[1]) < sizes_B[:, None]
        return cls.halves(Scores(logps_BT.to(device), mask_BT.to(device)))

    @classmethod
    def halves(cls, both: Scores) -> Self:
        """Chosen first, rejected behind them."""
        (chosen_BT, rejected_BT), masks = both.logps_BT.chunk(2), both.mask_BT.chunk(2)
        return cls(Scores(chosen_BT, masks[0]), Scores(rejected_BT, masks[1]))


def score_pairs(model: nn.Module, pairs: Pairs) -> PairScores:
    """Scores of the chosen and of the rejected completions, from one forward, each behind one copy of its prompt."""
    return PairScores.halves(score(model, pairs.chosen + pairs.rejected))


def lengths(scores: Scores) -> Tensor:
    """Tokens of each completion, [B]."""
    return scores.mask_BT.sum(1)


def mean_logps(scores: Scores) -> Tensor:
    """Log-probability per token of each completion, [B]."""
    return scores.logps_BT.sum(1) / lengths(scores)


def pair_metrics(chosen_B: Tensor, rejected_B: Tensor, scores: PairScores) -> dict[str, Mean | Max]:
    """The metrics of pairs whose implicit rewards are `chosen_B` and `rejected_B`."""
    gap_B, pairs = (chosen_B - rejected_B).detach(), len(chosen_B)
    found: dict[str, Mean | Max] = {
        "accuracy": Mean(count_positive(gap_B), pairs),
        "margin": Mean(gap_B.sum(), pairs),
    }
    for name, reward_B, side in (("chosen", chosen_B, scores.chosen), ("rejected", rejected_B, scores.rejected)):
        found[f"reward/{name}"] = Mean(reward_B.detach().sum(), pairs)
        found[f"logp/{name}"] = Mean(side.logps_BT.detach().sum(), pairs)
        found[f"length/{name}"] = Mean(lengths(side).sum(), pairs)
    return found


class PairMethod(Method):
    """A method whose loss is a mean over preference pairs."""

    kind: ClassVar[str] = "Preference"
    expected_change: ClassVar[tuple[str, float]] = ("eval/accuracy", 0.15)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "accuracy", "eval/accuracy")

    def denominator(self, batch: Batch) -> int:
        return len(batch)
