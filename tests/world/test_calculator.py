"""The calculator evaluates plain arithmetic, refuses everything else and never executes text."""

from functools import cache
from typing import Any

import pytest

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.world.calculator import Calculator, calculate
from tests.training_runs import composed


@cache
def configured(option: str) -> dict[str, Any]:
    return composed(["method=ppo", f"environment={option}"])["environment"]


def calculator(option: str = "calculator", **changes: Any) -> Calculator:
    return instantiate(configured(option) | changes)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7 + 2", "9"),
        ("12 - 5 * 2", "2"),
        ("(12 - 5) * 2", "14"),
        ("-3 + 1", "-2"),
        ("7 / 2", "3.5"),
        ("0.1 + 0.2", "0.3"),
        ("1 / 3", "0.3333333333"),
        ("6 / 3", "2"),
        ("99999999999999999999 + 1", "100000000000000000000"),
        ("100000000001 / 2", "50000000000.5"),
        ("$1,250.50 + 10", "1260.5"),
        ("5 x (3 × 2)", "30"),
        ("10 ÷ 4 − 1", "1.5"),
    ],
)
def test_arithmetic_is_evaluated_in_plain_notation(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "7 +",
        "7 2",
        "1 / 0",
        "2 ** 9",
        "1e999",
        "1e308 * 10",
        "True + 1",
        "1j",
        "x + 1",
        "__import__('os')",
        "(" * 60,
        "1+" * 60 + "1",
        "1\x00",
        "[1][0]",
        "'a' * 9",
    ],
)
def test_non_arithmetic_has_no_value(expression: str) -> None:
    assert calculate(expression) is None


@pytest.mark.parametrize(
    ("turn", "answer"),
    [
        (" 7 + 2 =", " 9."),
        (" 7. 7 + 2 =", " 9."),
        ("First,\n7 + 2 =", " 9."),
        (" so 1.5 + 2 =", " 3.5."),
        (" is -3 + 1 =", " -2."),
        ("$5 + $3 =", " 8."),
        ("1,000 + 250 =", " 1250."),
        ("In 2020, 100 + 5 =", " 105."),
        ("costs$5 + 3 =", " 8."),
        ("-$5 + 3 =", " -2."),
        ("the sum of 5 + 3 =", " 8."),
        ("First,\n5 =", " 5."),
        ("5 x 3 =", " 15."),
        ("5 × 3 =", " 15."),
        # the value of only a part would be wrong
        ("2^3 =", " error."),
        ("20% of 50 =", " error."),
        ("20% of 50 + 1 =", " error."),
        ("half of 10 =", " error."),
        ("half of (10) =", " error."),
        ("12 apples + 3 =", " error."),
        ("12 apples - 3 =", " error."),
        ("x3 =", " error."),
        (" the sum =", " error."),
        ("=", " error."),
        (" 1 / 0 =", " error."),
        (f" {'9' * 5000} + 1 =", " error."),
        (f" {'1' * 5000} a =", " error."),
    ],
)
def test_call_in_running_text_is_the_arithmetic_before_the_sign(turn: str, answer: str) -> None:
    step = calculator().step(None, turn)
    assert step.observation == answer
    assert step.error == ("error" in answer)
    assert not step.done


def test_tool_call_is_the_text_between_tags() -> None:
    step = calculator("calculator_tags").step
    assert step(None, "I add: <calc>7 + 2</calc>").observation == "<result>9</result>"
    assert step(None, "<calc>1</calc> <calc>2 + 2</calc>").observation == "<result>4</result>"
    assert step(None, "<calc>seven</calc>").observation == "<result>error</result>"
    assert step(None, "7 + 2</calc>").error


def test_every_key_has_an_effect() -> None:
    turn = "<c>7 + 2 ="
    assert calculator().step(None, turn).observation == " 9."
    assert calculator(open="<d>").step(None, turn).error
    assert calculator(close=">").stop == (">",)
    assert calculator(before=": ").step(None, turn).observation == ": 9."
    assert calculator(after="!").step(None, turn).observation == " 9!"
    assert (calculator().step(None, "=").reward, calculator(error_penalty=0.5).step(None, "=").reward) == (0, -0.5)
    assert calculator(error_penalty=0.5).step(None, turn).reward == 0
    assert (calculator(max_turns=3).max_turns, calculator(max_observation_tokens=7).max_observation_tokens) == (3, 7)


def test_empty_close_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"environment\.close"):
        calculator(close="")
