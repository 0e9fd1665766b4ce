"""Repetition metrics and the detection of collapsed completions."""

from __future__ import annotations

import random

import pytest

from postrain.data.repetition import (
    collapsed,
    distinct_n,
    distinct_ngram_share,
    distinct_text_share,
    loop_share,
    ngrams,
    one_word_share,
)


def test_distinct_n_is_different_ngrams_over_all_ngrams() -> None:
    # "a b a b" and "a b": bigrams ab, ba, ab, ab → 2 different of 4
    assert distinct_n(["a b a b", "a b"], 2) == 0.5
    # unigrams a b a b a b → 2 of 6
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["one"], 2) == 1.0


def test_distinct_n_of_equal_texts_is_low_over_the_set_only() -> None:
    assert distinct_ngram_share(["the", "cat", "sat"], 2) == 1.0
    assert distinct_n(["the cat sat"] * 4, 2) == 0.25


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b c d", 0.0),
        ("thanks thanks", 1.0),
        ("so a b a b end", 4 / 6),
        ("a b a", 0.0),  # a period of 2 needs 4 words
        ("x y z x y z x y", 1.0),
        ("very very good", 2 / 3),
    ],
)
def test_loop_share_is_the_share_of_words_in_immediate_repeats(text: str, share: float) -> None:
    assert loop_share(text) == pytest.approx(share)


@pytest.mark.parametrize("seed", range(5))
def test_ngram_counts_and_shares_are_in_bounds_for_random_texts(seed: int) -> None:
    generator = random.Random(seed)
    words = [generator.choice("abcde") for _ in range(generator.randrange(30))]
    for n in range(1, 5):
        assert len(ngrams(words, n)) == max(len(words) - n + 1, 0)
        assert 0 < distinct_ngram_share(words, n) <= 1
    assert 0 <= loop_share(" ".join(words)) <= 1


STORIES = [f"Tim saw {n} birds." for n in range(8)]
DISTINCT, ONE_WORD = "eval/completion/distinct", "eval/completion/one_word"


def collapse_metrics(texts: list[str]) -> dict[str, float]:
    return {DISTINCT: distinct_text_share(texts), ONE_WORD: one_word_share(texts)}


def test_distinct_and_one_word_shares_ignore_case_and_spaces() -> None:
    assert distinct_text_share(["a b", "A  b ", "c"]) == pytest.approx(2 / 3)
    assert one_word_share(["good good Good", "", "good.", "so good"]) == 0.75
    assert (distinct_text_share([]), one_word_share([])) == (1, 0)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["The end of it."] * 8, "12% of the completions are different (100% before training)"),
        ([f"{'glad ' * n}" for n in range(8)], "100% have at most one word (0% before training)"),
        (["", "", "", ""], "100% have at most one word"),
        (["They saw it."] * 4 + ["It was big."] * 4, "25% of the completions are different"),
        (STORIES, ""),
        (STORIES[:4] * 2, ""),
    ],
)
def test_collapse_is_found_for_one_text_or_one_word(texts: list[str], message: str) -> None:
    found = collapsed(collapse_metrics(STORIES), collapse_metrics(texts))
    assert message in found
    assert bool(found) == bool(message)


def test_short_equal_labels_before_training_are_not_a_collapse() -> None:
    labels = ["positive", "negative"] * 4
    found = collapsed(collapse_metrics(labels), collapse_metrics(["positive"] * 8))
    assert found == "12% of the completions are different (25% before training)"
    assert collapsed(collapse_metrics(labels), collapse_metrics(labels)) == ""
    assert collapsed(collapse_metrics(STORIES), {}) == ""


@pytest.mark.parametrize(("solved", "collapses"), [(0.9, False), (0.4, True)])
def test_alike_moves_are_no_collapse_where_the_policy_solves_the_environment_more_often(solved, collapses):
    before, after = collapse_metrics(STORIES), collapse_metrics(["left"] * 8)
    success = "eval/environment/success"
    assert bool(collapsed(before | {success: 0.4}, after | {success: solved})) is collapses
