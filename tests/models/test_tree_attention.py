"""Attention over packed rows with flex_attention, uncompiled on the CPU, against attention in blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as flex

from postrain.models import tree_attention
from postrain.models.packing import hidden_states, pack, supports_packing
from postrain.models.parts import trunk
from postrain.models.tree_attention import Tree, block_mask, tree_for, visible
from tests.models.test_packing import prompt_groups
from tests.tiny import SHAPES, tiny_model


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Uses flex_attention on the CPU, without a compiled kernel; the lengths of its calls."""
    lengths: list[int] = []

    def recording(query: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        lengths.append(query.shape[2])
        return flex.flex_attention(query, *given, **named)

    monkeypatch.setattr(tree_attention, "DEVICES", {"cpu"})
    monkeypatch.setattr(tree_attention, "FEWEST_TOKENS", 1)
    monkeypatch.setattr(tree_attention, "known", {})
    monkeypatch.setattr(tree_attention, "compiled", lambda: recording)
    # Its gradients on a CPU are those of the definition, which PyTorch refuses because they are slow.
    monkeypatch.setattr(flex, "_validate_device", lambda *_: None)
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return lengths


@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("size", [4, 16])
def test_masks_are_those_of_the_rows(window, size, monkeypatch):
    monkeypatch.setattr(tree_attention, "BLOCK", size)
    for seed in range(12):
        ids = prompt_groups(seed)
        packed = pack(ids)
        count = len(packed.ids_N)
        expected_NN = torch.zeros(count, count, dtype=torch.bool)
        for row, index_L in zip(ids, packed.index_RL, strict=True):
            for at in range(len(row)):
                expected_NN[index_L[at], index_L[max(0, at + 1 - (window or at + 1)) : at + 1]] = True
        tree, at_N = Tree(packed.positions_N, torch.device("cpu")), torch.arange(count)
        found_NN = visible(*tree.on_device, window)(at_N, at_N, at_N[:, None], at_N)
        assert found_NN.equal(expected_NN)
        blocks = -(-count // size)
        whole = torch.zeros(blocks * size, blocks * size, dtype=torch.bool)
        whole[:count, :count] = expected_NN
        tiles = whole.view(blocks, size, blocks, size).transpose(1, 2).flatten(2)
        mask = block_mask(*tree.on_device, window)
        partial, full = (
            dense(*pair)
            for pair in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices))
        )
        assert full.equal(tiles.all(-1))
        assert not (partial & full).any()
        assert not (tiles.any(-1) & ~partial & ~full).any()
        if window is None:
            assert (partial | full).equal(tiles.any(-1))


def dense(counts: Any, indices: Any) -> torch.Tensor:
    """The marked blocks, [Q, L]."""
    marks = torch.zeros(indices.shape[-2:], dtype=torch.bool)
    for row, (number, places) in enumerate(zip(counts[0, 0].tolist(), indices[0, 0], strict=True)):
        marks[row, places[:number]] = True
    return marks


@pytest.mark.parametrize("architecture", SHAPES)
def test_states_and_gradients_equal_those_of_attention_in_blocks(architecture, uncompiled, monkeypatch):
    model = tiny_model(architecture).double()
    monkeypatch.setattr(tree_attention, "works", lambda kind: True)

    def measured(ids: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        states_ND, _ = hidden_states(model, ids)
        weights_ND = torch.randn(states_ND.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        parameters = list(trunk(model).parameters())
        return states_ND, list(torch.autograd.grad((states_ND * weights_ND).sum(), parameters, allow_unused=True))

    assert supports_packing(model)
    for seed in range(4):
        ids = prompt_groups(seed)
        before = len(uncompiled)
        found = measured(ids)
        layers = len(uncompiled) - before
        with monkeypatch.context() as other:
            other.setattr(tree_attention, "DEVICES", set())
            expected = measured(ids)
        if any(block.is_masked(None) for block in pack(ids).blocks):
            assert layers == 2
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=1e-6)
        for mine, theirs in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert uncompiled


def test_the_kernel_is_used_for_rows_that_share_tokens_only(uncompiled):
    model = tiny_model("llama")
    assert supports_packing(model)
    # Tried with and without gradients, then two layers of ten tokens.
    assert uncompiled == [510] * 2 + [10] * 2
    hidden_states(model, (torch.tensor([3, 4, 5, 6]), torch.tensor([7, 8])))
    assert uncompiled[4:] == []
    hidden_states(model, (torch.tensor([3, 4, 5, 6]), torch.tensor([3, 4, 5, 7, 9])))
    assert uncompiled[4:] == [6] * 2


@pytest.mark.parametrize("architecture", SHAPES)
def test_a_kernel_is_tried_with_the_windows_of_the_model_also_in_inference_mode(architecture, uncompiled, capsys):
    model = tiny_model(architecture)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert supports_packing(model)
    windows = [kind[-1] for kind in tree_attention.known]
    assert windows == ([True, False] if architecture == "gemma3" else [False])
    assert all(tree_attention.known.values())
    assert capsys.readouterr().err == ""


def test_the_memory_estimate_uses_no_kernel(uncompiled):
    with FakeTensorMode():
        parameter = torch.empty(1)
    assert tree_for(parameter, torch.arange(9)) is None
    assert tree_for(torch.empty(1), torch.arange(9)) is not None


@pytest.mark.parametrize("fails", ["at first", "by its values", "later"])
def test_a_kernel_that_fails_is_replaced_by_sdpa_with_one_line(fails, uncompiled, monkeypatch, capsys):
    model, rows = tiny_model("llama"), (torch.tensor([3, 4, 5, 6]), torch.tensor([3, 4, 5, 7, 9]))

    def kernel(query: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
        if fails == "at first" or (fails == "later" and query.shape[2] == 6):
            raise RuntimeError("no kernel\nmore")
        return flex.flex_attention(query, *given, **named) * (1.1 if fails == "by its values" else 1)

    expected = hidden_states(model, rows)[0]
    monkeypatch.setattr(tree_attention, "known", {})
    monkeypatch.setattr(tree_attention, "compiled", lambda: kernel)
    for _ in range(2):
        torch.testing.assert_close(hidden_states(model, rows)[0], expected)
    reason = "its values differ by 0.1" if fails == "by its values" else "RuntimeError: no kernel"
    note = f"note: attention of shared prompts uses SDPA: flex_attention fails here ({reason})\n"
    assert capsys.readouterr().err == note
