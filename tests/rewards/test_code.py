"""code.py: scores of programs by the tests of their rows, and malformed tests."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.rewards.base import nan_to_none
from postrain.rewards.code import Checks, Code, extract_program, parse_tests

SQUARE = "def f(x):\n    return x * x"
ASSERTS = "from math import inf\nassert f(2) == 4\nassert f(3) == 9\nfor x in range(2):\n    assert f(x) == x"
PAIRS = [{"input": "1 2\n", "output": "3\n"}, {"stdin": "2 2", "stdout": "4"}]


def reward(**changes: Any) -> Code:
    defaults: dict[str, Any] = {"credit": "share", "timeout": 1, "memory_mb": 256, "workers": 2}
    return Code(**{"allow_execution": True, **defaults, **changes})


def scores_of(tests: Any, *completions: str, **changes: Any) -> tuple[float | None, ...]:
    return nan_to_none(
        reward(**changes)(["p"] * len(completions), completions, [{"tests": tests}] * len(completions)).total_B
    )


def test_score_is_the_share_of_passed_asserts() -> None:
    # f(x) = 4 passes the first of three; f(x) = x the loop
    half, other = "def f(x):\n    return 4", "def f(x):\n    return x"
    assert scores_of(ASSERTS, SQUARE, half, other, "", "f = 3") == (
        1.0,
        pytest.approx(1 / 3),
        pytest.approx(1 / 3),
        0.0,
        0.0,
    )
    assert scores_of(ASSERTS, SQUARE, half, credit="all") == (1.0, 0.0)


def test_endless_loop_scores_the_tests_passed_before_it() -> None:
    loops = "def f(x):\n    while x == 3:\n        pass\n    return x * x"
    rewards = reward()(
        ["p"] * 4, [loops, "while True: pass", SQUARE, SQUARE], [{"tests": ASSERTS}] * 3 + [{"tests": ""}]
    )
    assert rewards.parts["code"] == (pytest.approx(1 / 3), 0.0, 1.0, None)
    assert rewards.parts["out_of_limits"] == (1.0, 1.0, 0.0, None)


def test_score_is_the_share_of_matching_outputs() -> None:
    adds = "print(sum(map(int, input().split())), ' ')"
    assert scores_of(PAIRS, adds, "print(3)", "print(3)\nraise SystemExit(1)") == (1.0, 0.5, 0.0)
    assert scores_of(PAIRS, "print(3)", credit="all") == (0.0,)
    rewards = reward()(["p"], ["print(3, flush=True)\nwhile True: pass"], [{"tests": PAIRS}])
    assert (rewards.parts["code"], rewards.parts["out_of_limits"]) == ((0.0,), (1.0,))


def test_program_runs_under_the_configured_limits() -> None:
    limits = "import resource\nassert resource.getrlimit(resource.RLIMIT_CPU) == (7, 7)"
    assert scores_of(
        f"{limits}\nassert resource.getrlimit(resource.RLIMIT_AS)[0] == 300 << 20", "f = 1", timeout=7
    ) == (0.5,)
    assert scores_of(f"{limits}\nassert bytearray(200 << 20)", "f = 1", timeout=7, memory_mb=512) == (1.0,)


def test_number_of_workers_changes_no_score() -> None:
    completions = [SQUARE, "f = 3", "", SQUARE]
    assert (
        scores_of(ASSERTS, *completions, workers=1)
        == scores_of(ASSERTS, *completions, workers=3)
        == (1.0, 0.0, 0.0, 1.0)
    )


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("Here:\n```python\na = 1\n```\nor\n```python\na = 2\n```", "a = 1\n"),
        ("```bash\nls\n```\n```py\na = 1\n```", "a = 1\n"),
        ("```\na = 1\n```", "a = 1\n"),
        ("<think>```python\na = 0\n```</think>```Python\na = 1\n```", "a = 1\n"),
        ("```python\na = 1\n", "a = 1\n"),  # truncated
        ("1. Write\n   ```python\n   a = 1\n   ```", "a = 1\n"),
        ("```Python\r\na = 1\r\n```", "a = 1\n"),
        ("~~~python\na = 1\n~~~", "a = 1\n"),
        ("```python3.11\na = 1\n```", "a = 1\n"),
        ("a = 1", "a = 1"),
        ("", ""),
    ],
)
def test_program_is_the_first_python_block(completion: str, program: str) -> None:
    assert extract_program(completion) == program


@pytest.mark.parametrize(
    ("tests", "pieces"),
    [
        ("import os\nx = 1\nassert x\n'words'\nassert os", ("import os\nx = 1\nassert x", '"""words"""\nassert os')),
        (["assert f(1)", "assert f(2)"], ("assert f(1)", "assert f(2)")),
        ("def check(g):\n    assert g(1)\ncheck(f)\ny = 2", ("def check(g):\n    assert g(1)\ncheck(f)",)),
        ("def check(g):\n    assert g(1)", ("def check(g):\n    assert g(1)\ncheck(f)",)),
        (["import math", "assert f(1)"], ("import math\nassert f(1)",)),
        # as text: JSON and Python
        ('["assert f(1)", "assert f(2)"]', ("assert f(1)", "assert f(2)")),
        ("['assert f(1)']", ("assert f(1)",)),
        # a comparison alone passes whatever it returns, and other expressions test nothing
        ("f\n[1]\nf(1) == 2", ("f\n[1]\nassert f(1) == 2",)),
        ("not f(1)\n-f(1)", ("assert not f(1)",)),
    ],
)
def test_tests_are_split_into_one_assert_each(tests: Any, pieces: tuple[str, ...]) -> None:
    found = parse_tests({"tests": tests, "entry_point": "f"}, "row 1")
    assert found is not None
    assert found.tests == pieces


@pytest.mark.parametrize(
    "tests",
    [
        [{"input": "3", "output": "6"}, {"input": "4", "output": "8"}],
        '[{"input": "3", "output": "6"}, {"input": "4", "output": "8"}]',
        {"inputs": ["3", "4"], "outputs": ["6", "8"]},
        '{"inputs": ["3", "4"], "outputs": ["6", "8"]}',
    ],
)
def test_inputs_and_outputs_may_be_text_or_two_lists(tests: Any) -> None:
    assert parse_tests({"tests": tests}, "row 1") == Checks(pairs=(("3", "6"), ("4", "8")))


def test_exit_ends_a_program_without_an_error() -> None:
    assert scores_of(PAIRS, "print(3)\nexit()\nprint(4)", "print(3)\nquit(1)") == (0.5, 0.0)


@pytest.mark.parametrize("tests", [None, "", []])
def test_row_without_tests_is_unscorable(tests: Any) -> None:
    assert parse_tests({"tests": tests}, "row 1") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tests": "assert f("}, "the tests of row 1 are not Python ('(' was never closed (<unknown>, line 1))"),
        ({"tests": "x = 1"}, "the tests of row 1 contain neither an assert nor a call: 'x = 1'"),
        ({"tests": "f\n[1]"}, "the tests of row 1 contain neither an assert nor a call"),
        ({"tests": {"inputs": [], "outputs": [1]}}, "or {inputs: [...], outputs: [...]}, got {'inputs': []"),
        (
            {"tests": {"inputs": [1], "outputs": [2], "fn_name": "f"}},
            "the tests of row 1: fn_name (a function call, not",
        ),
        ({"tests": '{"fn_name": "f", "inputs": [[1]], "outputs": [2]}'}, "write asserts such as assert f(...) == ..."),
        ({"tests": 3}, "the tests of row 1: expected Python with asserts, a list of asserts, a list of {input: ..."),
        ({"tests": [{"in": "1"}]}, "the tests of row 1: expected text under stdin or input, got {'in': '1'}"),
        (
            {"answer": 1},
            "needs the column tests, and the prompts have only answer; map one with data.columns.t",
        ),
    ],
)
def test_malformed_tests_are_a_one_line_error(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_tests(row, "row 1")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_code_reward_requires_allow_execution_and_workable_limits() -> None:
    with pytest.raises(ConfigError, match=r"reward.allow_execution: this reward runs Python .* set reward.allow_exec"):
        reward(allow_execution=False)
    with pytest.raises(ConfigError, match=r"reward.memory_mb=1, .*not even an empty program can run"):
        reward(memory_mb=1)
