"""Self-certainty of completions: how far a model's next-token distributions are from uniform (Kang et al. 2025, arXiv
2502.18581; the reward of INTUITOR, Zhao et al. 2025, arXiv 2505.19590, eq. 3).

Axes: B completions, T tokens, N tokens of all completions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from postrain.losses.divergence import kl_from_uniform
from postrain.models.micro_batches import in_micro_batches
from postrain.models.parts import logits_of, model_width, upcast
from postrain.models.reference import in_eval_mode
from postrain.models.scoring import in_chunks, supervised_states
from postrain.types import Rows

BATCH_TOKENS = 8192
"""Tokens per forward pass; affects memory and speed only."""


def self_certainty(model: nn.Module, rows: Rows) -> Tensor:
    """The mean of KL(uniform ‖ model) over the supervised tokens of each row, in nats at temperature 1, [B]."""

    def divergences(part: Rows) -> Tensor:
        found = supervised_states(model, part)

        def chunk(states_ND: Tensor) -> tuple[Tensor]:
            return (kl_from_uniform(upcast(logits_of(model, states_ND))),)

        (kl_N,) = in_chunks(chunk, found.states_ND, vocabulary=model_width(model))
        return found.unflatten(kl_N)

    with in_eval_mode(model):
        kl_BT = in_micro_batches(divergences, rows, BATCH_TOKENS)
    count_B = torch.tensor([int(mask.sum()) for mask in rows.supervised], device=kl_BT.device)
    return kl_BT.sum(1) / count_B.clamp(min=1)
