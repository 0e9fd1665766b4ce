"""Each rule reports once, at the right update, and resumed runs remember it."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console

from postrain.runs.folder import RunFolder
from postrain.training.diagnostic_rules import History, Rule
from postrain.training.diagnostics import FIRST, RECENT, Diagnostics
from postrain.training.record_files import MetricsFile
from postrain.types import ConfigError


def high(history: History) -> str | None:
    return f"x is {history[-1]['x']:.0f} [not markup]" if history[-1]["x"] >= 3 else None


def rising(history: History) -> str | None:
    values = [entry["x"] for entry in history if "x" in entry]
    return "rose three times" if len(values) > 3 and values[-4:] == sorted(values[-4:]) else None


RULES = (Rule("high", "High", high), Rule("rising", "Rising", rising))


def train(folder: RunFolder, trainer: Any, method: Any, values: Sequence[float], rules: Any = RULES) -> str:
    """Updates with these values of x, through MetricsFile and Diagnostics; what was printed."""
    out = io.StringIO()
    callbacks = [MetricsFile(folder), Diagnostics(folder, rules, Console(file=out, width=80))]
    for callback in callbacks:
        callback.on_train_start(trainer, method)
    for value in values:
        method.step(x=value)
        for callback in callbacks:
            callback.on_train_batch_end(trainer, method, None, None, 0)
    return out.getvalue()


def test_once_and_kept(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    printed = train(folder, trainer, make_method(), [1, 3, 2, 4])
    assert printed == "High (update 2)\n  x is 3 [not markup]\n"
    assert folder.diagnostics.read() == [
        {"update": 2, "rule": "high", "title": "High", "text": "x is 3 [not markup]", "stops": False}
    ]


def test_a_resumed_run_reports_what_the_uninterrupted_one_does(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any], tmp_path: Any
) -> None:
    values = [1, 3, 2, 4, 5, 6]
    whole = RunFolder.create(tmp_path, "ppo", "whole", "12345678")
    train(whole, trainer, make_method(), values)
    # "rising" looks at updates 3 to 6, across the resume at 4; "high" was told at 2; what came after 4 is lost.
    train(folder, trainer, make_method(), values[:5])
    train(folder, trainer, make_method(done=4), values[4:])
    assert folder.diagnostics.read() == whole.diagnostics.read()
    assert [record["update"] for record in whole.diagnostics.read()] == [2, 6]


def test_a_rule_that_stops(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    rules = (Rule("high", "High", high, stops=True),)
    with pytest.raises(ConfigError, match="stopped at update 2: x is 3"):
        train(folder, trainer, make_method(), [1, 3], rules)
    assert folder.diagnostics.read()[0]["stops"] is True


def test_other_ranks_stop_too_but_print_nothing(
    folder: RunFolder, other_rank: Any, make_method: Callable[..., Any]
) -> None:
    assert train(folder, other_rank, make_method(), [3]) == ""
    assert not folder.diagnostics.path.exists()
    with pytest.raises(ConfigError):
        train(folder, other_rank, make_method(), [3], (Rule("high", "High", high, stops=True),))


def test_the_memory_is_bounded_and_keeps_the_beginning(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any]
) -> None:
    lengths: list[int] = []

    def watch(history: History) -> str | None:
        lengths.append(len(history))
        assert history[0]["x"] == 0
        return None

    train(folder, trainer, make_method(), [float(x) for x in range(FIRST + RECENT + 20)], (Rule("w", "W", watch),))
    assert max(lengths) == FIRST + RECENT
