"""KTO pairing: the completion that each unpaired preference borrows for the KL estimate."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from postrain.data.kinds.unpaired_preference import kto_pairing
from postrain.errors import ConfigError


def test_kto_pairing_prefers_another_prompt_and_another_completion():
    rng = random.Random(0)
    for _ in range(400):
        count = rng.randint(2, 12)
        prompts, completions = (rng.choices("abcde"[: rng.randint(1, 5)], k=count) for _ in range(2))
        if len(set(completions)) == 1:
            with pytest.raises(
                ConfigError, match=r"all completions are the same in a part of \d+ unpaired preferences"
            ):
                kto_pairing(prompts, completions)
            continue
        items = list(zip(prompts, completions, strict=True))
        for (prompt, completion), other in zip(items, kto_pairing(prompts, completions), strict=True):
            assert completions[other] != completion
            possible = any(p != prompt and c != completion for p, c in items)
            assert (prompts[other] != prompt) == possible


@pytest.mark.parametrize("pairs", [2, 3, 20, 21])
def test_kto_pairing_borrows_both_sides_of_pairs_equally_often(pairs):
    prompts = [pair for pair in range(pairs) for _ in range(2)]
    found = Counter(other % 2 for other in kto_pairing(prompts, list(range(2 * pairs))))
    assert found == {0: pairs, 1: pairs}


def test_kto_pairing_takes_linear_time_on_equal_items():
    # 100,000 equal items and one different: a linear search for each item would take 10^10 steps.
    count = 100_000
    assert kto_pairing([0] * count + [1], [0] * count + [1]) == [count] * count + [count // 2 - 1]


def test_kto_pairing_of_one_unpaired_preference_is_refused():
    with pytest.raises(ConfigError, match=r"part of 1 unpaired preferences; .* raise data\.eval_fraction"):
        kto_pairing(["a"], ["b"])
