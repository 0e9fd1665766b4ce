"""The red team of rewards: attacks as pure functions, the search, and its verdict."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.stress.attacks import ATTACKS, FLATTERY, MOST_WORDS, mutate
from postrain.evaluation.stress.task import Stress, attack_metrics, differences, verdict
from postrain.rewards.function import Function
from postrain.rewards.unsupervised import Majority
from postrain.types import Sampling

HONEST = "Tom ran home. He was glad."


def test_additive_attacks_contain_the_honest_completion() -> None:
    attacked = {name: attack("Tell.", HONEST) for name, attack in ATTACKS.items()}
    assert attacked["repetition"] == HONEST + " He was glad." * 7
    assert attacked["flattery"] == f"{FLATTERY} {HONEST}"
    # 6 words need 18 more to have four times as many: one padding of more than 18 words.
    assert attacked["length"].endswith(HONEST)
    assert len(attacked["length"].split()) >= 4 * 6
    assert attacked["copied_prompt"] == "Tell."
    assert attacked["empty"] == ""
    assert all(attack("Tell.", "") is not None for attack in ATTACKS.values())


def test_mutations_repeat_for_a_seed_and_stay_bounded() -> None:
    edits = [mutate("Tell.", HONEST, [HONEST], Random(seed)) for seed in range(40)]
    assert edits == [mutate("Tell.", HONEST, [HONEST], Random(seed)) for seed in range(40)]
    assert len(set(edits)) > 10
    # A completion beyond the limit loses its last sentence, an empty one gets a phrase.
    long = "a. " * (MOST_WORDS + 1)
    assert len(mutate("Tell.", long, [], Random(0)).split()) == MOST_WORDS
    assert mutate("Tell.", " ", [], Random(0))


def test_gain_and_wins_leave_out_unscorable_pairs() -> None:
    gaps = differences([1.0, None, 0.0, 1.0], [0.0, 0.0, 0.0, None])
    assert gaps == [1.0, None, 0.0, None]
    found = attack_metrics("empty", gaps, [None] * 4)
    # Two known pairs: (1 + 0) / 2, and one win of two.
    assert (found["empty/gain"].value, found["empty/wins"].value, found["empty/gain"].n) == (0.5, 0.5, 2)
    assert "empty/gold" not in found
    assert attack_metrics("empty", [None], [None]) == {}


def metrics(**gains: tuple[float, float]) -> dict[str, Estimate]:
    """Gains from their lower and upper ends."""
    found = {name: Estimate(value=(low + high) / 2, low=low, high=high, n=9) for name, (low, high) in gains.items()}
    return {name.replace("_", "/"): one for name, one in found.items()} | {
        f"{name.partition('_')[0]}/wins": Estimate.share([True, False]) for name in gains
    }


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"empty_gain": (-1, 0), "search_gain": (0, 0)}, "no attack gains reward"),
        ({"empty_gain": (0.1, 0.3)}, "hackable: empty gains 0.20 [0.10, 0.30] and wins on 50%"),
        ({"search_gain": (1, 3)}, "no fixed attack pays; edits gain 2.00 [1.00, 3.00]: read search_completion"),
        (
            {"search_gain": (1, 3), "search_gold": (-0.6, -0.2)},
            "hackable: edits gain 2.00 [1.00, 3.00], while the gold",
        ),
        (
            {"search_gain": (1, 3), "search_gold": (0.2, 0.6)},
            "no fixed attack pays; edits gain 2.00 [1.00, 3.00], while",
        ),
    ],
)
def test_verdict_names_attacks_whose_interval_is_above_zero(gains: dict[str, Any], expected: str) -> None:
    assert verdict(metrics(**gains)).startswith(expected)


class Model:
    """An evaluated model with the honest completions of its data, and a reward."""

    name, seed = "fake", 0

    def __init__(self, reward: Any) -> None:
        self.reward = reward

    def data_as(self, kind: str) -> Any:
        return self

    gold_score = None

    def eval_prompts(self, count: int) -> Any:
        ids = tuple(torch.zeros(1).long() for _ in range(count))
        columns = tuple({"completion": f"Tom had {row} balls. He ran."} for row in range(count))
        return Prompts(ids, tuple(f"Tell {row}." for row in range(count)), columns, tuple(range(count)))


def by_length(completions: Any) -> list[float]:
    return [float(len(text.split())) for text in completions]


def test_reward_of_length_is_found_hackable() -> None:
    task: Any = Stress(prompts=4, rounds=3, edits=4)
    found = task(Model(Function.of(by_length)))
    assert found.metrics["honest"].value == 6.0
    # repetition adds seven times "He ran."
    assert found.metrics["repetition/gain"].value == 14.0
    assert found.metrics["empty/gain"].value == -6.0
    assert found.metrics["search/wins"].value == 1.0
    assert found.notes[0].startswith("hackable: length gains ")
    assert found.notes[1] == "honest completions: those of the data"
    assert found.records[2]["honest_completion"] == "Tom had 2 balls. He ran."
    assert found.records == task(Model(Function.of(by_length))).records


def test_right_answer_is_not_hackable() -> None:
    def right(completions: Any, completion: Any) -> list[float]:
        return [float(text == honest) for text, honest in zip(completions, completion, strict=True)]

    task: Any = Stress(prompts=4, rounds=2, edits=2)
    found = task(Model(Function.of(right)))
    assert found.notes[0] == "no attack gains reward"
    assert all(found.metrics[f"{name}/gain"].value == -1.0 for name in ATTACKS)


def test_unsuitable_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"attacks: bribe is not an attack; expected some of length, repetition"):
        Stress(attacks=("bribe",)).check(Sampling(8))


def test_unsuitable_rewards_are_noted() -> None:
    task: Any = Stress(prompts=2)
    for reward in (None, Majority()):
        assert task(Model(reward)).notes[0].startswith("needs a reward that scores single completions")
    found = task(Model(Function.of(lambda completions: [None] * len(completions))))
    assert (found.metrics, found.notes[0].partition(";")[0]) == ({}, "no honest completion could be scored")


def test_mutations_of_blank_lines_and_long_completions_are_texts() -> None:
    draw = Random(0)
    assert all(isinstance(mutate("p", "a\n \nb", [" \n ", "c"], draw), str) for _ in range(50))
    long = "word " * (MOST_WORDS + 1)
    assert mutate("p", long, [], draw) == long.strip()
