"""What a gold function says: numbers by name, or one line."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.evaluation.completions import _gold
from postrain.world.gold import score


def test_numbers_are_taken_as_they_are() -> None:
    assert _gold(lambda prompt, completion, gold: {"total": 1, "x": 0.5}, "p", "c", {"gold": {}}) == {
        "total": 1.0,
        "x": 0.5,
    }


@pytest.mark.parametrize("value", [None, 1.0, [1.0], {"total": 10**400}, {"total": float("nan")}, {"total": "1"}])
def test_what_is_no_number_is_one_line(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.gold: .*returned .* for row 3, prompt 'p'; expected finite"
    ) as caught:
        _gold(lambda prompt, completion, gold: value, "p", "c", {"gold": {}, "row": 3})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gold", [None, 1, {}, {"weights": {"nope": 1.0}}])
def test_a_specification_that_is_none_is_one_line(gold: Any) -> None:
    with pytest.raises(ConfigError, match=r"^data\.gold: postrain\.world\.gold\.score raised .* on row 3, prompt 'p'"):
        _gold(score, "p", "c", {"gold": gold, "row": 3})
