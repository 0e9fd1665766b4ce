"""shaping.py: the arithmetic of length and repetition."""

from __future__ import annotations

import pytest

from postrain.errors import ConfigError
from postrain.rewards.shaping import cosine, length_budget, overlong, repetition


def text_of(words: int) -> str:
    return "a " * words


def test_repetition_is_minus_the_share_of_repeated_ngrams() -> None:
    # "a b a b": bigrams ab ba ab, 2 of 3 are new → 2/3 - 1;  a repeated six times: 1 of 5 bigrams → 1/5 - 1
    expected = [0.0, pytest.approx(-1 / 3), pytest.approx(-0.8), 0.0]
    assert repetition(["a b c", "a b a b", text_of(6), ""], n=2) == expected
    assert repetition(["a b a b"]) == [0.0]  # no trigram is repeated
    with pytest.raises(ConfigError, match=r"reward.arguments.n: expected an integer >= 1, got 0"):
        repetition(["a"], n=0)


def test_overlong_is_linear_within_the_cache() -> None:
    # max 10, cache 4: 0 up to 6 words; 8 → (6 - 8) / 4 = -0.5; 10 and more → -1
    assert overlong([text_of(n) for n in (0, 6, 7, 8, 10, 30)], max_words=10, cache=4) == [0, 0, -0.25, -0.5, -1, -1]
    with pytest.raises(ConfigError, match=r"reward.arguments.cache: expected an integer >= 1"):
        overlong(["a"], max_words=10, cache=0)
    with pytest.raises(ConfigError, match=r"reward.arguments.max_words: expected at least cache \(4\), got 3"):
        overlong(["a"], max_words=3, cache=4)


def test_cosine_matches_worked_example() -> None:
    completions = ["7", "a a a 7", "", "a a a 8", text_of(7) + "7", "7"]
    # max_words 8. Correct with 1 word: 1 + ½ (2 - 1)(1 + cos π/8) = 1.9619; with 4 words, half way: 1.5.
    # Wrong with 0 words: -10; half way: -5. Correct with 8 words: -10 (exceeded). No reference answer: None.
    assert cosine(completions, ["7"] * 5 + [None], max_words=8) == [
        pytest.approx(1.9619, abs=1e-4),
        pytest.approx(1.5),
        -10.0,
        pytest.approx(-5.0),
        -10.0,
        None,
    ]


def test_cosine_with_other_end_points_and_scorer() -> None:
    ends = {"right": (1.0, 0.5), "wrong": (-1.0, -0.5), "exceeded": -2.0}
    scorer = "postrain.rewards.text.exact"
    # half way: 0.5 + ½ · 0.5 = 0.75; -0.5 - ½ · 0.5 = -0.75
    expected = [pytest.approx(0.75), pytest.approx(-0.75), -2.0]
    assert cosine(["b", "a", "b b"], ["b"] * 3, max_words=2, scorer=scorer, **ends) == expected
    with pytest.raises(ConfigError, match="has no numerc; did you mean numeric"):
        cosine(["b"], ["b"], max_words=2, scorer="postrain.rewards.text.numerc")


def test_length_budget_rewards_right_answers_within_the_budget() -> None:
    given = {
        "completions": ["7", "7", "8", "7"],
        "completion_ids": [[0] * 90, [0] * 130, [0] * 90, [0]],
        "answer": ["7", "7", "7", None],
    }
    settings = {"tokens": 100, "alpha": 0.01}
    # max: 0.01 · (100 − 90) + ½, 0.01 · (100 − 130) + ½, wrong, no answer
    assert length_budget(**given, **settings) == [pytest.approx(0.6), pytest.approx(0.2), 0.0, None]
    # exact: 1 − 0.01 · 10, 1 − 0.01 · 30, 0 − 0.01 · 10
    exact = [pytest.approx(0.9), pytest.approx(0.7), pytest.approx(-0.1), None]
    assert length_budget(**given, **settings, form="exact") == exact
    # The column precedes the argument: 0.01 · (130 − 130) + ½ for the second.
    assert length_budget(**given, **settings, budget=[None, 130, None, None])[:2] == [pytest.approx(0.6), 0.5]
