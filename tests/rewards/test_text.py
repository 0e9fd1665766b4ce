"""text.py: rewards that read text alone, on cases with a known worth."""

from __future__ import annotations

from decimal import Decimal

import pytest

from postrain.rewards.text import exact, last_number, length, matches, non_repetition, numeric
from postrain.types import ConfigError


def test_exact() -> None:
    assert exact([" Paris\n", "paris!", "x"], ["paris", "Paris", None]) == [1.0, 0.0, None]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("3 + 4 = 7.", "7"),
        ("#### 1,234", "1234"),
        ("it is -0.50", "-0.5"),
        ("about .5 of it", "0.5"),
        ("10 - 3 is 7", "7"),
        ("none", None),
        ("room 4b", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == (None if number is None else Decimal(number))


def test_numeric() -> None:
    completions = ["so 3 + 4 = 7.00", "8, no: 7", "7 or 8", "seven"]
    assert numeric(completions, ["#### 7", 7, "7", "7"]) == [1.0, 1.0, 0.0, 0.0]
    assert numeric(["7"], [None]) == [None]


def test_length() -> None:
    # 4 words asked: 4 → 1, 2 → 1 - 2/4, 8 → 0, 20 → 0
    assert length(["a b c d", "a b", "a " * 8, "a " * 20], words=4) == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ConfigError, match=r"reward.arguments.words"):
        length(["a"], words=0)


def test_matches() -> None:
    assert matches([" <b>1\n2</b> ", "<b>1</b> more"], pattern="<b>.*</b>") == [1.0, 0.0]
    with pytest.raises(ConfigError, match="not a regular expression"):
        matches(["a"], pattern="(")


def test_non_repetition() -> None:
    # "a b a b": bigrams ab ba ab → 2 of 3
    assert non_repetition(["a b c", "a b a b", ""]) == [1.0, pytest.approx(2 / 3), 1.0]
