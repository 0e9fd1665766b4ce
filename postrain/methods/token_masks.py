"""Masks of tokens selected among the completions of all ranks.

Axes: B completions, T completion tokens, N tokens of all ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from postrain.hardware import collectives
from postrain.losses.token_selection import top_entropy_tokens
from postrain.methods.online import Online
from postrain.models.micro_batches import in_micro_batches
from postrain.models.scoring import score
from postrain.seeds import generator
from postrain.types import Rows


def over_all_ranks(select: Callable[..., Tensor], mask_BT: Tensor, *values_BT: Tensor) -> Tensor:
    """`select` applied to the masked values of all ranks, [N] each, → the selected tokens of this rank, [B, T]."""
    tokens, own = collectives.concatenate([values[mask_BT] for values in values_BT])
    selected_BT = torch.zeros_like(mask_BT)
    if len(tokens[0]):
        selected_BT[mask_BT] = select(*tokens)[own].to(mask_BT.device)
    return selected_BT


def drawn_tokens(seed: int, update: int, completions: Sequence[tuple[int, int]], mask_BT: Tensor) -> Tensor:
    """A random number from [0, 1) for each token, [B, T]. `completions` are the index of the prompt in the global batch
    and the number of the completion, so that numbers do not depend on the ranks."""
    drawn_BT = torch.zeros(mask_BT.shape)
    for row, (prompt, completion) in enumerate(completions):
        size = int(mask_BT[row].sum())
        drawn_BT[row, :size] = torch.rand(
            size, generator=generator(seed, "token_selection", update, prompt, completion)
        )
    return drawn_BT.to(mask_BT.device)


def high_entropy_tokens(method: Online, rows: Rows, mask_BT: Tensor, quantile: float) -> Tensor:
    """The tokens of `mask_BT` in the top `quantile` of the policy's exact entropies over all ranks, [B, T]. Costs a
    forward pass."""

    def entropies(part: Rows) -> Tensor:
        found = score(method.policy, part, temperature=method.sampling.temperature, entropy="constant").entropy_BT
        assert found is not None
        return found

    entropy_BT = torch.zeros(mask_BT.shape, device=mask_BT.device)
    used = mask_BT.any(1).nonzero().flatten().tolist()
    if used:
        found_BT = in_micro_batches(entropies, rows.select(used), method.tokens_per_micro_batch)
        entropy_BT[used, : found_BT.shape[1]] = found_BT.to(entropy_BT)
    return over_all_ranks(lambda entropy_N: top_entropy_tokens(entropy_N, quantile), mask_BT, entropy_BT)
