"""query_checks.py: numbers and options extracted from texts."""

from __future__ import annotations

import pytest

from postrain.evaluation.query_checks import chosen_option, first_number_in, last_number_in, normalised

COLOURS = (("blue",), ("grey", "gray"), ("red",))


@pytest.mark.parametrize(
    ("text", "last", "first"),
    [
        ("It is 12.", 12, 12),
        ("3 + 5 = 8 and 8 - 2 = 6, so 6.", 6, 3),
        ("It prints 14, which is 2 + 3 * 4.", 14, 14),
        ("2 + 3", 3, 2),  # only a calculation: its last number
        ("len([4, 5, 6]) is 3, as [4, 5, 6] is that long", 3, 4),
        ("The area is 24 cm^2", 24, 24),
        ("It drives 180km.", 180, 180),
        ("$1,250.50 in all", 1250.5, 1250.5),
        ("A year has 366 days. Every 4 years.", 4, 366),
        ("There are seven days in one week", 1, 7),
        ("One.", 1, 1),
        ("twenty-four hours", 24, 24),
        ("Twenty of eleven", 11, 20),
        ("\\boxed{5} since 3 > 2", 5, 5),
        ("None at all", None, None),
    ],
)
def test_first_and_last_number_are_extracted(text: str, last: float | None, first: float | None) -> None:
    found = (last_number_in(text), first_number_in(text))
    assert [value if value is None else float(value) for value in found] == [last, first]


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("Blue, and never red", "blue"),
        ("A GRAY one", "grey"),
        ("Red is warm and grey is dull, so it is blue", "blue"),
        ("The answer is: red. Blue is nicer", "red"),
        ("It is blue, so nice", "blue"),  # the conclusion names no option
        ("bluish", None),
        ("<answer>red</answer> not blue", "red"),
    ],
)
def test_option_is_extracted(text: str, option: str | None) -> None:
    assert chosen_option(text, COLOURS) == option


def test_normalised_text_has_no_case_or_punctuation() -> None:
    assert normalised(' "The  CAT\nsat." ') == "the cat sat"
