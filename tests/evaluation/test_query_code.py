"""query_code.py: functions extracted from answers and run."""

from __future__ import annotations

import pytest

from postrain.evaluation.query_code import defines, passes, signature, source

PROSE = "Here it is:\ndef add(a, b):\n    # sum\n\n    return a + b\nThat was it."


@pytest.mark.parametrize(
    ("text", "defined"),
    [
        ("def add(a, b): return a", True),
        ("def add(a, b, c=0): return a", True),
        ("def add(*numbers): return numbers", True),
        ("```python\ndef add(a, b):\n    return a\n```\nThis adds.", True),
        (PROSE, True),
        ("def add(a): return a", False),
        ("def add(a, b, c): return a", False),
        ("def add(a, b, *, c): return a", False),
        ("def plus(a, b): return a", False),
        ("```python\ndef add(a, b)\n    return a\n```", False),
        ("It is a + b.", False),
    ],
)
def test_defines_checks_name_and_arguments(text: str, defined: bool) -> None:
    assert defines(text, "add(x, y)") == defined


def test_source_extracts_a_function_from_prose() -> None:
    assert source(PROSE, "add") == "def add(a, b):\n    # sum\n\n    return a + b\n"


@pytest.mark.parametrize("call", ["add", "add(", "add(a=1)", "a.b(c)", "1"])
def test_invalid_signature_raises_value_error(call: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        signature(call)


def test_passes_runs_the_tests_of_code() -> None:
    program = "def add(a, b): return a + b"
    assert passes(program, ["assert add(1, 2) == 3", "assert add(0, 0) == 0"])
    assert not passes(program, ["assert add(1, 2) == 3", "assert add(1, 1) == 1"])
