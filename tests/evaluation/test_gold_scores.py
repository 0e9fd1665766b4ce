"""Gold functions: numbers by name, or a one-line error."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.evaluation.completions import gold_parts
from postrain.world.gold import score


def test_gold_score_of_numbers_is_returned_as_floats() -> None:
    assert gold_parts(lambda prompt, completion, gold: {"total": 1, "x": 0.5}, "p", "c", {"gold": {}}) == {
        "total": 1.0,
        "x": 0.5,
    }


@pytest.mark.parametrize("value", [None, 1.0, [1.0], {"total": 10**400}, {"total": float("nan")}, {"total": "1"}])
def test_gold_score_that_is_not_a_number_raises_a_one_line_error(value: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"^data\.gold: .*returned .* for row 3, prompt 'p'; expected finite"
    ) as caught:
        gold_parts(lambda prompt, completion, gold: value, "p", "c", {"gold": {}, "row": 3})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("gold", [None, 1, {}, {"weights": {"nope": 1.0}}])
def test_invalid_gold_specification_raises_a_one_line_error(gold: Any) -> None:
    with pytest.raises(ConfigError, match=r"^data\.gold: postrain\.world\.gold\.score raised .* on row 3, prompt 'p'"):
        gold_parts(score, "p", "c", {"gold": gold, "row": 3})
