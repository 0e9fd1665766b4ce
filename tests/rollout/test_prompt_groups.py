"""Shared-prompt attention equals attention of each row alone."""

import pytest
import torch
from torch.nn import functional as F

from postrain.rollout.decode.cache import MIN_ROWS, prompt_groups, shared_attention
from postrain.types import Stop
from tests.engines import engine, prompts
from tests.tiny import tiny_model

HEADS, QUERIES, WIDTH, PROMPT, OWN = 2, 3, 4, 5, 6


def test_rows_find_their_groups():
    prompt_B = torch.tensor([7, 3, 7, 9] * 10)
    groups = prompt_groups(prompt_B)
    assert groups is not None
    assert prompt_B[groups.leaders_P].tolist() == [3, 7, 9]
    # three groups padded to twenty entries: 0-9, 20-39 and 40-49 are used
    assert sorted(groups.entry_B.tolist()) == [*range(10), *range(20, 40), *range(40, 50)]
    assert groups.rows_N[groups.entry_B].tolist() == list(range(40))
    assert (groups.entry_B // 20).tolist() == [1, 0, 1, 2] * 10


@pytest.mark.parametrize(
    "prompt_of_row",
    [
        list(range(MIN_ROWS)),  # no shared prompt
        [0] * (MIN_ROWS - 1),  # too few rows
        [0] * 20 + list(range(1, 16)),  # sixteen groups padded to twenty rows would be nine times the rows
    ],
)
def test_small_groups_do_not_use_shared_attention(prompt_of_row):
    assert prompt_groups(torch.tensor(prompt_of_row)) is None


@pytest.mark.parametrize("prompt_of_row", [[0] * 32, [4, 2] * 16, [0] * 16 + [1] * 12 + [2] * 8])
def test_shared_attention_is_each_rows_own(prompt_of_row):
    torch.manual_seed(0)
    prompt_B = torch.tensor(prompt_of_row)
    groups = prompt_groups(prompt_B)
    assert groups is not None
    rows, count = len(prompt_of_row), int(prompt_B.max()) + 1
    query = torch.randn(rows, HEADS, QUERIES, WIDTH)
    prompt = torch.randn(2, count, HEADS, PROMPT, WIDTH)
    own = torch.randn(2, rows, HEADS, OWN, WIDTH)
    mask = torch.zeros(rows, 1, 1, PROMPT + OWN).masked_fill_(torch.rand(rows, 1, 1, PROMPT + OWN) < 0.3, -torch.inf)
    once = (prompt[0][prompt_B[groups.leaders_P]], prompt[1][prompt_B[groups.leaders_P]])
    found = shared_attention(query, groups, once, (own[0], own[1]), mask, 0.5)
    keys, values = torch.cat([prompt[:, prompt_B], own], dim=3)
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.5)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen3"])
def test_shared_attention_does_not_change_completions(architecture):
    model, many = tiny_model(architecture), [prompt for prompt in prompts(5) for _ in range(12)]
    together = engine().generate(model, many, seeds=range(60), stop=Stop((0, 5)))
    apart = engine(batch_rows=8).generate(model, many, seeds=range(60), stop=Stop((0, 5)))
    assert [item.ids.tolist() for item in together] == [item.ids.tolist() for item in apart]
    assert all(torch.allclose(one.logps, two.logps, atol=1e-5) for one, two in zip(together, apart, strict=True))
