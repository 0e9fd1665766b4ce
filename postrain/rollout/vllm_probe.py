"""Check after every transfer that vLLM has the policy's weights: its log-probabilities of a few sampled tokens must
equal the policy's up to rounding.

vLLM packs, fuses and ties weights after loading, so a transfer can succeed and leave a part of the model as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.models.reference import in_eval_mode
from postrain.models.scoring import score
from postrain.types import Completion, Rows

PROMPTS, TOKENS = 4, 8
"""Number of prompts, and sampled tokens of each."""
TOLERANCE = {torch.float32: 0.005, torch.bfloat16: 0.15}
"""Largest mean difference per token [nats], in bfloat16 if vLLM or the policy computes in it. Measured with the bundled
model and vLLM on a CPU: 0.000001 in float32, 0.02 in bfloat16, 0.7 with an output head that was not transferred.
Rounding to bfloat16 moves a token of SmolLM2-135M by 0.07, root mean square.
"""

Complete = Callable[[Sequence[Tensor], Sequence[Mapping[str, Any]]], list[Completion]]


@torch.no_grad()
def check_weights(
    complete: Complete,
    model: nn.Module,
    prompts: Sequence[Tensor],
    settings: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    where: str,
) -> float:
    """Mean difference per token [nats] between vLLM's log-probabilities and the policy's.

    `settings` are those of a row, here without truncation; `where` names the engine. Raises ConfigError if the
    difference exceeds the tolerance; `dtype` is vLLM's.
    """
    chosen = list({tuple(prompt.tolist()): prompt.cpu() for prompt in prompts}.values())[:PROMPTS]
    tokens = min(TOKENS, settings["max_tokens"])
    untruncated = {**settings, "top_k": -1, "top_p": 1.0, "min_p": 0.0, "stop": [], "stop_token_ids": []}
    # Without an end token, so that every prompt has the same number of tokens.
    row = {**untruncated, "max_tokens": tokens, "ignore_eos": True, "temperature": settings["temperature"] or 1.0}
    found = complete(chosen, [row] * len(chosen))
    theirs = torch.cat([each.logps for each in found])

    def difference(temperature: float) -> float:
        return float((own_logps(model, chosen, found, temperature) - theirs).abs().mean())

    weights = next(model.parameters())
    rounded = torch.bfloat16 in (dtype, weights.dtype) or torch.is_autocast_enabled(weights.device.type)
    error, tolerance = difference(row["temperature"]), TOLERANCE[torch.bfloat16 if rounded else torch.float32]
    if error <= tolerance:
        return error
    if row["temperature"] != 1 and difference(1.0) <= tolerance:
        raise ConfigError(
            f"{where}: its log-probabilities ignore rollout.temperature={row['temperature']}; start it with "
            "--logprobs-mode processed_logprobs"
        )
    raise ConfigError(
        f"{where}: with the policy's weights its log-probabilities still differ from the policy's by {error:.3g} nats "
        f"per token (rounding is below {tolerance:g}); give a server of this model, started with the --dtype that "
        "rollout.dtype names"
    )


def own_logps(model: nn.Module, prompts: Sequence[Tensor], found: Sequence[Completion], temperature: float) -> Tensor:
    """The policy's log-probabilities of all sampled tokens, float32 [N] on the CPU."""
    pairs = list(zip(prompts, found, strict=True))
    rows = Rows(
        ids=tuple(torch.cat([prompt, each.ids]) for prompt, each in pairs),
        supervised=tuple(torch.arange(len(prompt) + len(each.ids)) >= len(prompt) for prompt, each in pairs),
        row_ids=tuple(range(len(pairs))),
    )
    with in_eval_mode(model):
        scores = score(model, rows, temperature=temperature)
    return scores.logps_BT[scores.mask_BT].float().cpu()
