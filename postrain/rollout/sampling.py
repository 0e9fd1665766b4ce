"""Drawing a token from logits, with the log-probability of what was drawn; no model, no loop."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from postrain.types import Sampling


def uniforms(keys: Sequence[int], count: int) -> Tensor:
    """One row of `count` uniform numbers for each key, [B, count]: a row's randomness is its own."""
    return torch.stack(
        [torch.rand(count, dtype=torch.float32, generator=torch.Generator().manual_seed(key)) for key in keys]
    )


def draw(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens [B] and their log-probabilities [B] under the distribution they were drawn from.

    Inverse transform sampling: the token whose slice of the cumulative distribution holds the row's uniform number.
    Temperature 0 is greedy and reports log-probabilities at temperature 1.
    """
    logps_BV = allowed_logps(logits_BV, sampling)
    if sampling.temperature == 0:
        tokens_B = logps_BV.argmax(-1)
    else:
        cumulative_BV = logps_BV.exp().cumsum(-1)
        tokens_B = torch.searchsorted(
            cumulative_BV, (uniform_B.to(logps_BV) * cumulative_BV[:, -1])[:, None], right=True
        )
        tokens_B = tokens_B.squeeze(-1).clamp(max=logits_BV.shape[-1] - 1)
    return tokens_B, logps_BV.gather(-1, tokens_B[:, None]).squeeze(-1)


def allowed_logps(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Log-probabilities after temperature, top-k and top-p, renormalised; −inf where a token is cut off."""
    logits_BV = logits_BV.float() / (sampling.temperature or 1.0)
    if sampling.top_k:
        kept = logits_BV.topk(min(sampling.top_k, logits_BV.shape[-1])).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < kept, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = logits_BV.softmax(-1).sort(-1, descending=True)
        # A token stays when the mass of the likelier ones has not yet reached top_p: the likeliest always stays.
        beyond = (ordered.cumsum(-1) - ordered) >= sampling.top_p
        logits_BV = logits_BV.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), -torch.inf)
    return logits_BV.log_softmax(-1)
