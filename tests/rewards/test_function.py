"""function.py: TRL-style reward functions, and one-line errors with file and line."""

from __future__ import annotations

import pickle
import signal
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from postrain.errors import ConfigError, Interrupted
from postrain.rewards.function import Function

SOURCE = """
import torch

def by_keyword(completions, **columns):
    return [float(len(text)) + extra for text, extra in zip(completions, columns["extra"])]

def by_name(prompts, completions, answer):
    return [None if a is None else float(a in c) for c, a in zip(completions, answer)]

def fixed(completions, scale=1.0):
    return [scale * len(text) for text in completions]

def tensor(prompts, completions):
    return torch.tensor([1.0, 2.0])

def divides(completions, answer):
    return [helper(c, a) for c, a in zip(completions, answer)]

def helper(text, answer):
    return len(text) / answer

def needs_batch(completions):
    return [completions[1] == "x" for _ in completions]

def short(completions):
    return [1.0]

def text(completions):
    return "12"

def octets(completions):
    return b"ab"

def echo(completions, answer):
    return list(answer)

NUMBER = 3
"""
PROMPTS, COMPLETIONS = ("say a", "say b"), ("aa", "c")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(SOURCE)
    return tmp_path / "mine.py"


def score(path: Path, name: str, columns: Any = ({}, {}), **arguments: Any) -> tuple[float | None, ...]:
    rewards = Function(function=f"{path}:{name}", arguments=arguments)(PROMPTS, COMPLETIONS, columns)
    return rewards.parts[name]


def error(path: Path, name: str, columns: Any = ({}, {}), **arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        score(path, name, columns, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_function_receives_the_columns_it_names_or_all_as_keywords(path: Path) -> None:
    columns = ({"answer": "a", "extra": 1}, {"answer": None, "extra": 2})
    assert score(path, "by_keyword", columns) == (3.0, 3.0)  # len("aa") + 1, len("c") + 2
    assert score(path, "by_name", columns) == (1.0, None)
    assert score(path, "fixed", columns) == (2.0, 1.0)
    assert score(path, "fixed", columns, scale=2) == (4.0, 2.0)
    assert score(path, "tensor") == (1.0, 2.0)


def test_none_is_nan_in_the_total(path: Path) -> None:
    rewards = Function(function=f"{path}:by_name", arguments={})(PROMPTS, COMPLETIONS, ({"answer": "a"}, {}))
    torch.testing.assert_close(rewards.total_B, torch.tensor([1.0, float("nan")]), equal_nan=True)


@pytest.mark.parametrize(
    "value", [True, np.float32(1.0), np.int64(1), 1, np.bool_(True), torch.tensor(1.0), Decimal(1)]
)
def test_numeric_types_are_accepted(path: Path, value: Any) -> None:
    assert score(path, "echo", ({"answer": value},) * 2) == (1.0, 1.0)


def test_function_by_dotted_path() -> None:
    reward = Function(function="postrain.rewards.text.numeric", arguments={})
    assert reward(PROMPTS, ("it is 7.0", "8"), ({"answer": "7"},) * 2).parts == {"numeric": (1.0, 0.0)}


def test_error_names_the_line_and_the_failing_prompt(path: Path) -> None:
    line = SOURCE.splitlines().index("    return len(text) / answer") + 1
    assert error(path, "divides", ({"answer": 1, "row": 4}, {"answer": 0, "row": 9})) == (
        f"reward function {path}:divides raised ZeroDivisionError: division by zero at {path}:{line} "
        "on row 9, prompt 'say b'"
    )


def test_error_of_a_batch_without_a_failing_prompt_is_reported(path: Path) -> None:
    source = path.read_text() + "\ndef small(completions):\n    assert len(completions) == 1\n    return [0]\n"
    path.write_text(source)
    assert error(path, "small").endswith("on this batch, though on none of its prompts alone")


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("short", ({}, {}), "returned 1 rewards for 2 completions"),
        ("text", ({}, {}), "expected a list of numbers (or None), one per completion, got '12'"),
        ("echo", ({"answer": 1}, {"answer": float("nan")}), "returned nan for prompt 'say b'; expected a finite"),
        ("echo", ({"answer": float("inf")}, {"answer": 1}), "returned inf for prompt 'say a'"),
        ("echo", ({"answer": 10**400}, {"answer": 1}), "returned 1000000000"),
        ("echo", ({"answer": 10**5000}, {"answer": 1}), "returned a number of too many digits to print for prompt"),
        ("echo", ({"answer": -1e39}, {"answer": 1}), "returned -1e+39 for prompt 'say a'; expected a finite number"),
        ("echo", ({"answer": "1"}, {"answer": 1}), "returned '1' for prompt 'say a'"),
        ("echo", ({"answer": 1j}, {"answer": 1}), "returned 1j for prompt 'say a'"),
        ("echo", ({"answer": [1]}, {"answer": 1}), "returned [1] for prompt 'say a'"),
        ("octets", ({}, {}), "expected a list of numbers (or None), one per completion, got b'ab'"),
        ("by_name", ({"question": 1}, {"label": 1}),
         "needs answer, and the prompts have only question, label; map a column of the data with data.columns.answer="),
    ],
)  # fmt: skip
def test_invalid_return_value_is_a_one_line_error(path: Path, name: str, columns: Any, message: str) -> None:
    found = error(path, name, columns)
    assert found.startswith(f"reward function {path}:{name} ({path}:")
    assert message in found


def test_unknown_argument_is_refused(path: Path) -> None:
    assert error(path, "fixed", sclae=2).endswith("takes no argument sclae (reward.arguments)")


def test_builtin_without_signature_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"builtins\.max .*has no readable signature; wrap it"):
        Function(function="builtins.max", arguments={})(PROMPTS, COMPLETIONS, ({}, {}))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("{path}:by_nam", "has no function by_nam; did you mean by_name?"),
        ("{path}:NUMBER", "has no function NUMBER"),
        ("nowhere.py:f", "there is no file nowhere.py (looked for"),
        ("postrain.rewards.text.numerc", "postrain.rewards.text has no numerc; did you mean numeric?"),
    ],
)
def test_missing_function_is_refused(path: Path, function: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Function(function=function.format(path=path), arguments={})
    assert message in str(caught.value)


def test_syntax_error_of_a_file_is_reported(path: Path) -> None:
    path.write_text("def f(:\n")
    with pytest.raises(ConfigError, match=r"mine\.py cannot be imported: SyntaxError: invalid syntax"):
        Function(function=f"{path}:f", arguments={})


BESIDE = """
from __future__ import annotations
from dataclasses import dataclass
from beside_this_file import double

@dataclass
class Settings:
    scale: int = 1

def reward(completions):
    return [double(len(text)) * Settings().scale for text in completions]
"""


def test_file_may_import_its_neighbours_define_dataclasses_and_be_pickled(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    path.write_text(BESIDE)
    path.with_name("beside_this_file.py").write_text("def double(x): return 2 * x")
    reward = Function(function=f"{path}:reward")
    # 2 · len("aa"), 2 · len("c")
    assert reward(PROMPTS, COMPLETIONS, ({}, {})).total_B.tolist() == [4.0, 2.0]
    assert pickle.loads(pickle.dumps(reward.call)) is reward.call
    # the same file is one module, and another file of its name or of the name of a package is another
    assert Function(function=f"{path}:reward").call is reward.call
    for other in (path.parent / "other" / "mine.py", path.with_name("json.py")):
        other.parent.mkdir(exist_ok=True)
        other.write_text("def reward(completions): return [1.0] * len(completions)")
        assert Function(function=f"{other}:reward")(PROMPTS, COMPLETIONS, ({}, {})).total_B.tolist() == [1.0, 1.0]
    assert hasattr(sys.modules["json"], "loads")
    assert sys.modules["mine"].__file__ != str(path.parent / "other" / "mine.py")


EXITS = {
    "sys.exit(0)": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "generator": ("raise GeneratorExit", "GeneratorExit"),
    "memory": ("raise MemoryError('all of it')", "MemoryError: all of it"),
    "recursion": ("return exits(completions)", "RecursionError: maximum recursion depth exceeded"),
}


@pytest.mark.parametrize("kind", EXITS)
def test_exits_of_a_function_are_errors(path: Path, kind: str) -> None:
    body, expected = EXITS[kind]
    path.write_text(f"def exits(completions):\n    {body}\n")
    found = error(path, "exits")
    assert found.startswith(f"reward function {path}:exits raised {expected}")
    assert f"at {path}:2" in found


def test_exit_at_import_is_an_error(path: Path) -> None:
    path.write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=rf"cannot be imported: SystemExit: 0 at {path}:2"):
        Function(function=f"{path}:f", arguments={})


def test_interrupt_passes_through_a_function(path: Path) -> None:
    path.write_text("from postrain.errors import Interrupted\ndef f(completions):\n    raise Interrupted(15)\n")
    with pytest.raises(Interrupted):
        score(path, "f")


HANGS = {
    "waiting": "import time; time.sleep(60)",
    "a loop": "\n    while True: pass",
    "a swallowed error": "\n    while 1:\n        try:\n            while 1: pass\n        except Exception: pass",
    "late": "\n    try:\n        while True: pass\n    except BaseException: return [1.0, 2.0]",
}


@pytest.mark.parametrize("kind", HANGS)
def test_timeout_stops_a_function_and_names_its_line(path: Path, kind: str) -> None:
    path.write_text(f"def hangs(completions):\n    {HANGS[kind]}\n")
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(ConfigError) as caught:
        Function(function=f"{path}:hangs", arguments={}, timeout=0.05)(PROMPTS, COMPLETIONS, ({}, {}))
    assert str(caught.value).startswith(
        f"reward function {path}:hangs took longer than reward.timeout=0.05 seconds (at {path}:"
    )
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_function_within_its_timeout_is_unaffected(path: Path) -> None:
    reward = Function(function=f"{path}:fixed", arguments={}, timeout=60.0)
    assert reward(PROMPTS, COMPLETIONS, ({}, {})).parts["fixed"] == (2.0, 1.0)
