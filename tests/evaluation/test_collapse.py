"""A collapsed policy: one word, or one text for all prompts."""

from __future__ import annotations

import pytest

from postrain.data.repetition import collapsed, distinct_text_share, one_word_share

TALES = [f"Tim saw {n} birds." for n in range(8)]
DISTINCT, ONE_WORD = "eval/completion/distinct", "eval/completion/one_word"


def shape(texts: list[str]) -> dict[str, float]:
    return {DISTINCT: distinct_text_share(texts), ONE_WORD: one_word_share(texts)}


def test_shares_of_completions() -> None:
    assert distinct_text_share(["a b", "A  b ", "c"]) == pytest.approx(2 / 3)
    assert one_word_share(["good good Good", "", "good.", "so good"]) == 0.75
    assert (distinct_text_share([]), one_word_share([])) == (1, 0)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        (["The end of it."] * 8, "12% of the completions are different (100% before training)"),
        ([f"{'glad ' * n}" for n in range(8)], "100% have at most one word (0% before training)"),
        (["", "", "", ""], "100% have at most one word"),
        (["They saw it."] * 4 + ["It was big."] * 4, "25% of the completions are different"),
        (TALES, ""),
        (TALES[:4] * 2, ""),
    ],
)
def test_one_text_or_one_word_is_a_collapse(texts: list[str], says: str) -> None:
    found = collapsed(shape(TALES), shape(texts))
    assert says in found
    assert bool(found) == bool(says)


def test_labels_that_were_short_and_equal_before_training_are_not_a_collapse() -> None:
    labels = ["positive", "negative"] * 4
    found = collapsed(shape(labels), shape(["positive"] * 8))
    assert found == "12% of the completions are different (25% before training)"
    assert collapsed(shape(labels), shape(labels)) == ""
    assert collapsed(shape(TALES), {}) == ""
