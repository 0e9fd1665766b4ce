"""Odds-ratio preference optimisation: supervised learning of the chosen completions and, on top, larger odds for them
than for the rejected ones; no reference (Hong, Lee and Thorne 2024).

Axes: B pairs, T completion tokens.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from postrain.data.kinds.preference import Pairs
from postrain.methods.pairs import PairMethod, mean_logps, pair_metrics, score_pairs
from postrain.types import LossSum, Mean, NonNegative


def log_odds(mean_logp_B: Tensor) -> Tensor:
    """log(P / (1 − P)) with P = exp(mean log-probability per token), [B], in float32 (eq. 4).

    P is held below 1 by 1e-7: a completion the policy is sure of would have infinite odds.
    """
    held_B = mean_logp_B.float().clamp(max=-1e-7)
    return held_B - torch.log(-torch.expm1(held_B))


def odds_ratio(chosen_mean_B: Tensor, rejected_mean_B: Tensor) -> Tensor:
    """−log σ(log odds(chosen) − log odds(rejected)) of each pair, [B] (eq. 7)."""
    return -logsigmoid(log_odds(chosen_mean_B) - log_odds(rejected_mean_B))


class ORPO(PairMethod):
    """Minimises −log π(chosen) per token + odds_coef · odds ratio loss, a mean over pairs (eq. 6)."""

    # At a rate that keeps the language intact, what it writes improves before its ranking does.
    learns: ClassVar[tuple[str, float]] = ("gold/total", 0.05)

    odds_coef: NonNegative
    """λ."""

    def loss_sum(self, batch: Pairs) -> LossSum:
        scores = score_pairs(self.policy, batch)
        chosen_B, rejected_B = mean_logps(scores.chosen), mean_logps(scores.rejected)
        odds_B = odds_ratio(chosen_B, rejected_B)
        metrics = pair_metrics(chosen_B, rejected_B, scores)
        metrics["nll/chosen"] = Mean(-chosen_B.detach().sum(), len(batch))
        metrics["loss/odds_ratio"] = Mean(odds_B.detach().sum(), len(batch))
        return LossSum((-chosen_B + self.odds_coef * odds_B).sum(), metrics)
