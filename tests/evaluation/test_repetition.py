"""repetition.py and the n-grams under it, by counting."""

from __future__ import annotations

import random

import pytest

from postrain.data.repetition import distinct_n, distinct_ngram_share, loop_share, ngrams


def test_distinct_n_worked_numbers() -> None:
    # "a b a b" and "a b": bigrams ab, ba, ab, ab → 2 different of 4
    assert distinct_n(["a b a b", "a b"], 2) == 0.5
    # unigrams a b a b a b → 2 of 6
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["one"], 2) == 1.0


def test_a_set_of_equal_texts_is_repetitive_though_each_text_is_not() -> None:
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
def test_loop_share(text: str, share: float) -> None:
    assert loop_share(text) == pytest.approx(share)


@pytest.mark.parametrize("seed", range(5))
def test_ngrams_of_any_text(seed: int) -> None:
    generator = random.Random(seed)
    words = [generator.choice("abcde") for _ in range(generator.randrange(30))]
    for n in range(1, 5):
        assert len(ngrams(words, n)) == max(len(words) - n + 1, 0)
        assert 0 < distinct_ngram_share(words, n) <= 1
    assert 0 <= loop_share(" ".join(words)) <= 1
