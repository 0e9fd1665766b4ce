"""Trunk and head reproduce the model's output for each architecture, with and without an adapter."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from postrain.models.attention_kinds import has_known_kinds, is_windowed, windows
from postrain.models.loading import load_causal, load_scalar
from postrain.models.parts import logits_of, parts_agree, trunk
from tests.models.conftest import architectures, rows, source, tiny_model
from tests.models.test_adapters import lora, moved


@architectures
def test_trunk_and_head_give_the_models_logits(architecture: str) -> None:
    model = tiny_model(architecture)
    batch = rows("a story", "sum")
    states_BLD = trunk(model)(**batch, use_cache=False).last_hidden_state
    torch.testing.assert_close(logits_of(model, states_BLD), model(**batch).logits, rtol=1e-5, atol=1e-6)
    assert parts_agree(model)


@architectures
def test_trunk_of_a_policy_includes_its_adapter(architecture: str) -> None:
    model = tiny_model(architecture)
    bare = trunk(model)(**rows("abc"), use_cache=False).last_hidden_state
    policy = moved(lora().wrap(model, head="causal"))
    states_BLD = trunk(policy)(**rows("abc"), use_cache=False).last_hidden_state
    assert not torch.allclose(states_BLD, bare)
    assert parts_agree(policy)


def test_scalar_parts_agree_with_and_without_adapter(saved: Callable[..., Path]) -> None:
    model = load_scalar(source(saved("qwen2")).resolve(), dtype=torch.float32)
    assert parts_agree(model)
    assert parts_agree(moved(lora().wrap(model, head="scalar")))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unknown_output_scaling_is_detected(saved: Callable[..., Path], dtype: torch.dtype) -> None:
    model = load_causal(source(saved("llama")).resolve(), dtype=dtype)
    assert parts_agree(model)
    model.config.logits_scaling = 1.5
    assert not parts_agree(model)


def test_windows_count_for_rows_that_are_longer_and_only_where_their_layers_are_known() -> None:
    window = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}
    listed, unlisted = SimpleNamespace(**window), SimpleNamespace(sliding_window=6)
    assert windows(listed) == {"sliding_attention": 6, "full_attention": None}
    assert [is_windowed(each, row) for each in (listed, unlisted) for row in (6, 7)] == [False, True] * 2
    assert [has_known_kinds(each, row) for each in (listed, unlisted) for row in (6, 7)] == [True, True, True, False]
    # A window that the config switches off, or that no layer has.
    assert not is_windowed(SimpleNamespace(sliding_window=6, use_sliding_window=False))
    assert not is_windowed(SimpleNamespace(sliding_window=6, layer_types=["full_attention"]))
    assert not has_known_kinds(SimpleNamespace(layer_types=["chunked_attention"]))
