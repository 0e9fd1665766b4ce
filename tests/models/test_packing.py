"""Packed rows give the states and gradients of separate rows; unsupported architectures use padding."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, Qwen2MoeConfig

from postrain.models.packing import hidden_states, pack, shared_prefix_length, supports_packing
from postrain.models.parts import trunk
from tests.tiny import SHAPES, SMALL, VOCABULARY, tiny_model


def prompt_groups(seed: int) -> tuple[torch.Tensor, ...]:
    """Rows of random lengths in groups with a shared prefix; some are equal, some a prefix of another."""
    source = torch.Generator().manual_seed(seed)

    def draw(longest: int) -> torch.Tensor:
        length = int(torch.randint(1, longest, (1,), generator=source))
        return torch.randint(1, VOCABULARY, (length,), generator=source)

    rows = []
    for _ in range(int(torch.randint(1, 4, (1,), generator=source))):
        prompt = draw(20)
        rows += [torch.cat([prompt, draw(12)]) for _ in range(int(torch.randint(1, 4, (1,), generator=source)))]
        rows.append(prompt)
    rows.append(rows[0].clone())
    return tuple(rows[i] for i in torch.randperm(len(rows), generator=source).tolist())


def test_shared_prefix_is_packed_once():
    ids = (torch.tensor([5, 6, 7, 8]), torch.tensor([9]), torch.tensor([5, 6, 1]))
    # in lexicographic order: [5, 6, 1], then [7, 8] after its first two, then [9]
    packing = pack(ids)
    assert packing.ids_N.tolist() == [5, 6, 1, 7, 8, 9]
    assert packing.positions_N.tolist() == [0, 1, 2, 2, 3, 0]
    assert [packing.index_RL[row, : len(ids[row])].tolist() for row in range(3)] == [[0, 1, 3, 4], [5], [0, 1, 2]]
    # attention: the third row whole, the second whole, then the own tokens of the first, which shares half of its four
    shapes = [(block.first_R.tolist(), block.queries, block.keys) for block in packing.blocks]
    assert shapes == [([0], 3, 3), ([0], 1, 1), ([2], 2, 4)]
    assert packing.queries_M.tolist() == [0, 1, 2, 5, 3, 4]
    assert packing.keys_M.tolist() == [0, 1, 2, 5, 0, 1, 3, 4]
    causal, windowed = packing.blocks[2].mask(), packing.blocks[2].mask(2)
    assert causal is not None
    assert windowed is not None
    assert causal.tolist() == [[[[True, True, True, False], [True, True, True, True]]]]
    assert windowed.tolist() == [[[[False, True, True, False], [False, False, True, True]]]]
    assert packing.blocks[0].mask(3) is None
    assert packing.ids_N[packing.queries_M[packing.inverse_N]].tolist() == packing.ids_N.tolist()
    assert shared_prefix_length(ids[0], ids[2]) == 2


@pytest.mark.parametrize("architecture", SHAPES)
def test_packed_states_and_gradients_equal_separate_rows(architecture):
    # In float64, except norms and rotary angles, which some architectures always compute in float32.
    model = tiny_model(architecture).double()
    assert supports_packing(model)
    for seed in range(25):
        ids = prompt_groups(seed)
        weights = [torch.randn(len(row), model.config.hidden_size).double() for row in ids]
        states_ND, index_RL = hidden_states(model, ids)
        assert len(states_ND) == len({tuple(row[: i + 1].tolist()) for row in ids for i in range(len(row))})
        packed = [states_ND[index_RL[r, : len(row)]] for r, row in enumerate(ids)]
        alone = [trunk(model)(input_ids=row[None]).last_hidden_state[0] for row in ids]
        found = []
        for rows in (packed, alone):
            model.zero_grad()
            torch.stack([(row * weight).sum() for row, weight in zip(rows, weights, strict=True)]).sum().backward()
            found.append(torch.cat([p.grad.flatten() for p in trunk(model).parameters() if p.grad is not None]))
        assert all(torch.allclose(one, other, atol=1e-6, rtol=0) for one, other in zip(packed, alone, strict=True))
        assert float((found[0] - found[1]).norm() / found[1].norm()) < 1e-6


def test_attention_of_transformers_is_restored():
    model = tiny_model()
    hidden_states(model, prompt_groups(0))
    assert model.config._attn_implementation == "sdpa"


def test_equal_lengths_without_a_shared_prefix_are_not_packed():
    ids = (torch.tensor([1, 2, 3]), torch.tensor([4, 5, 6]))
    _, index_RL = hidden_states(tiny_model(), ids)
    assert index_RL.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_layers_that_apply_their_window_through_the_mask_are_padded():
    """Qwen2-MoE gives the attention function no window; rows of more than 8 tokens would attend to all."""
    sizes = {
        "moe_intermediate_size": 8,
        "shared_expert_intermediate_size": 8,
        "num_experts": 2,
        "num_experts_per_tok": 1,
    }
    heads: dict[str, Any] = {"num_attention_heads": 2, "num_key_value_heads": 1}
    window: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    layers: dict[str, Any] = {"layer_types": ["sliding_attention"] * 2}
    config = Qwen2MoeConfig(**SMALL, **sizes, **heads, **window, **layers)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    assert not supports_packing(model)
    full = AutoModelForCausalLM.from_config(Qwen2MoeConfig(**SMALL, **sizes, **heads), attn_implementation="sdpa")
    assert supports_packing(full.eval())


def test_unsupported_architecture_is_padded():
    torch.manual_seed(0)
    # ALiBi measures distances along the sequence and ignores the position ids.
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=1, n_head=2)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert not supports_packing(model)
    ids = (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2]))
    states_ND, index_RL = hidden_states(model, ids)
    for row, index_L in zip(ids, index_RL, strict=True):
        alone = trunk(model)(input_ids=row[None]).last_hidden_state[0]
        assert torch.allclose(states_ND[index_L[: len(row)]], alone, atol=1e-6)
