"""The context length excludes rows whose rotary scaling depends on the rest of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from postrain.models.directory import context_length, rotary_limit
from postrain.models.packing import hidden_states
from tests.models.conftest import SIZES

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10000.0}
DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


def scaled(rope: dict[str, Any]) -> Any:
    """A tiny model with this rotary scaling and 64 positions."""
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(
        LlamaConfig(**SIZES, rope_parameters=rope), attn_implementation="sdpa"
    ).eval()


def states_in_batch(model: Any, length: int) -> torch.Tensor:
    """The states of a short row in a batch with a row of `length` tokens."""
    long, short = torch.arange(length) % 50, torch.arange(60, 65)
    with torch.no_grad():
        found, index_RL = hidden_states(model, (long, short))
    return found[index_RL[1, : len(short)]]


@pytest.mark.parametrize(
    ("rope", "context"), [(LONGROPE | {"original_max_position_embeddings": 16}, 16), (DYNAMIC, 64)]
)
def test_within_the_context_rotary_scaling_ignores_the_rest_of_the_batch(rope: dict[str, Any], context: int) -> None:
    model = scaled(rope)
    assert context_length(model.config.to_dict()) == context
    torch.testing.assert_close(states_in_batch(model, context), states_in_batch(model, 6), rtol=0, atol=1e-5)
    # A longer row changes the states of the other one.
    assert (states_in_batch(model, 4 * context) - states_in_batch(model, 6)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 4096}, 4096),
        ({"rope_parameters": {"full_attention": LONGROPE | {"original_max_position_embeddings": 32}}}, 32),
        ({"text_config": {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 8}}}, 8),
        ({"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192}}, None),
        ({"rope_scaling": None}, None),
    ],
)
def test_rotary_limit_is_found_in_every_config_format(config: dict[str, Any], limit: int | None) -> None:
    assert rotary_limit(config) == limit
