"""Divergence from a reference whose most likely tokens alone are known at each position.

All other tokens are one outcome on both sides, with the rest of the probability. Merging outcomes can only lower a KL,
so the value is a lower bound of the divergence over the whole vocabulary, and equals it where the rest is 0.

Axes: B rows, T supervised tokens of a row, N of all rows, K known tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from postrain.losses.divergence import with_rest
from postrain.models.parts import logits_of, model_width, upcast
from postrain.models.scoring import in_chunks, supervised_states
from postrain.types import Batch, Rows


@dataclass(frozen=True)
class TopK(Batch):
    """Log-probabilities of a reference at the supervised tokens of each row."""

    ids: tuple[Tensor, ...]
    """The known tokens, int64 [T, K] per row."""
    logps: tuple[Tensor, ...]
    """Their log-probabilities, float32 [T, K] per row."""

    def cost(self) -> list[int]:
        return [0] * len(self.ids)


def score_top_k(
    model: nn.Module,
    rows: Rows,
    known: TopK,
    *,
    temperature: float,
    divergence: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """Divergence at each supervised token, differentiable in `model`, [B, T]; True at real tokens, [B, T]; the
    reference's probability of the known tokens, [B, T]."""
    mine = supervised_states(model, rows)
    device = mine.states_ND.device
    ids_NK, ref_logps_NK = torch.cat(known.ids).to(device), torch.cat(known.logps).to(device)

    def chunk(states_ND: Tensor, ids_NK: Tensor, ref_logps_NK: Tensor) -> tuple[Tensor]:
        logps_NV = (upcast(logits_of(model, states_ND)) / temperature).log_softmax(-1)
        logps_NO = with_rest(logps_NV.gather(-1, ids_NK))
        return (divergence(logps_NO, with_rest(ref_logps_NK), logps_NO.exp()),)

    (found_N,) = in_chunks(chunk, mine.states_ND, ids_NK, ref_logps_NK, vocabulary=model_width(model))
    return mine.unflatten(found_N), mine.mask_BT, mine.unflatten(ref_logps_NK.exp().sum(-1))
