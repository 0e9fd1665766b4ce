"""Samples tokens from logits and returns their log-probabilities.

Axes: B rows, V vocabulary, C blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from postrain.models.parts import upcast
from postrain.types import Sampling

# Tokens in a block of the two-level search for a token: the cumulative sum of a whole vocabulary is the slow part.
BLOCK = 64


def uniforms(seeds: Sequence[int], count: int) -> Tensor:
    """`count` uniform numbers per seed, [B, count]; a row depends on its seed only."""
    rows_BT = torch.empty(len(seeds), count, dtype=torch.float32)
    for row_T, seed in zip(rows_BT, seeds, strict=True):
        row_T.uniform_(generator=torch.Generator().manual_seed(seed))
    return rows_BT


def draw(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Samples tokens [B]; returns them with their log-probabilities [B] under the sampling distribution.

    Inverse transform sampling: the first token whose cumulative probability exceeds the row's uniform number.
    Temperature 0 is greedy and returns log-probabilities at temperature 1.
    """
    logits_BV = allowed_logits(logits_BV, sampling)
    top_B1 = logits_BV.amax(-1, keepdim=True)
    weights_BV = (logits_BV - top_B1).exp_()
    width = -logits_BV.shape[-1] % BLOCK
    weights_BCW = (F.pad(weights_BV, (0, width)) if width else weights_BV).unflatten(-1, (-1, BLOCK))
    mass_BC = weights_BCW.sum(-1)
    if sampling.temperature == 0:
        tokens_B1 = logits_BV.argmax(-1, keepdim=True)
    else:
        # NaN weights still return a valid token: the NaN guard gives a better message than an index error.
        tokens_B1 = invert(weights_BCW, mass_BC, uniform_B.to(mass_BC)[:, None]).clamp(max=logits_BV.shape[-1] - 1)
    logps_B1 = logits_BV.gather(-1, tokens_B1) - top_B1 - mass_BC.sum(-1, keepdim=True).log()
    return tokens_B1.squeeze(-1), logps_B1.squeeze(-1)


def invert(weights_BCW: Tensor, mass_BC: Tensor, uniform_B1: Tensor) -> Tensor:
    """Index of the first weight at which the cumulative sum exceeds the uniform fraction of the total, [B, 1]. Searches
    for the block first, then within it."""
    cumulative_BC = mass_BC.cumsum(-1)
    threshold_B1 = uniform_B1 * cumulative_BC[:, -1:]
    block_B1 = first_above(cumulative_BC, threshold_B1)
    inside_BW = weights_BCW.gather(1, block_B1[:, :, None].expand(-1, 1, BLOCK)).squeeze(1).cumsum(-1)
    before_B1 = cumulative_BC.gather(1, block_B1) - mass_BC.gather(1, block_B1)
    return block_B1 * BLOCK + first_above(inside_BW, threshold_B1 - before_B1)


def first_above(cumulative_BN: Tensor, threshold_B1: Tensor) -> Tensor:
    """First index at which the cumulative sum exceeds the threshold, [B, 1]."""
    # The threshold stays below the total and at least 0: rounding must not select an entry of weight 0.
    largest_B1 = torch.nextafter(cumulative_BN[:, -1:], cumulative_BN.new_zeros(()))
    index_B1 = torch.searchsorted(cumulative_BN, torch.minimum(threshold_B1, largest_B1).clamp(min=0), right=True)
    return index_B1.clamp(max=cumulative_BN.shape[-1] - 1)


def allowed_logits(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Logits after temperature, top-k, top-p and min-p; −inf for excluded tokens."""
    logits_BV = upcast(logits_BV)
    if sampling.temperature not in (0, 1):
        logits_BV = logits_BV / sampling.temperature
    if sampling.top_k:
        kept = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kept, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits_BV.softmax(-1).sort(-1, descending=True)
        # A token is kept if the more likely ones have less than top_p in total: the most likely one is always kept.
        beyond = (ordered.cumsum(-1) - ordered) >= sampling.top_p
        logits_BV = logits_BV.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    if sampling.min_p:
        probs_BV = logits_BV.softmax(-1)
        unlikely_BV = probs_BV < sampling.min_p * probs_BV.amax(-1, keepdim=True)
        logits_BV = logits_BV.masked_fill(unlikely_BV, -torch.inf)
    return logits_BV


def allowed_logps(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities of the sampling distribution, [B, V]."""
    return allowed_logits(logits_BV, sampling).log_softmax(-1)


def truncates(sampling: Sampling) -> bool:
    """Whether top-k, top-p or min-p truncate the distribution, so that log-probabilities differ from the model's."""
    return bool(sampling.top_k or sampling.top_p < 1 or sampling.min_p)
