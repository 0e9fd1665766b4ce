"""Each rule reports once, at the right update; a resumed run does not repeat a report."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from rich.console import Console

from postrain.errors import ConfigError
from postrain.runs.folder import RunFolder
from postrain.training.diagnostic_checks import History
from postrain.training.diagnostic_rules import Rule
from postrain.training.diagnostics import FIRST, RECENT, Diagnostics
from postrain.training.record_files import MetricsFile


def high(history: History) -> str | None:
    return f"x is {history[-1]['x']:.0f} [not markup]" if history[-1]["x"] >= 3 else None


def rising(history: History) -> str | None:
    values = [entry["x"] for entry in history if "x" in entry]
    return "rose three times" if len(values) > 3 and values[-4:] == sorted(values[-4:]) else None


def rule(name: str, check: Callable[[History], str | None], *, stops: bool = False) -> Rule:
    return Rule(name=name, title=name, symptom="", cause="Cause.", remedy="Remedy.", check=check, stops=stops)


RULES = (rule("high", high), rule("rising", rising))


def train(folder: RunFolder, trainer: Any, method: Any, values: Sequence[float], rules: Any = RULES) -> str:
    """Runs updates with these values of x through MetricsFile and Diagnostics; returns the printed text."""
    out = io.StringIO()
    callbacks = [MetricsFile(folder), Diagnostics(folder, rules, Console(file=out, width=80))]
    for callback in callbacks:
        callback.on_train_start(trainer, method)
    for value in values:
        method.step(x=value)
        for callback in callbacks:
            callback.on_train_batch_end(trainer, method, None, None, 0)
    return out.getvalue()


def test_rule_reports_once_and_is_recorded(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    printed = train(folder, trainer, make_method(), [1, 3, 2, 4])
    assert printed == "high (update 2)\n  x is 3 [not markup] Cause. Remedy.\n"
    assert folder.diagnostics.read() == [
        {"update": 2, "rule": "high", "title": "high", "text": "x is 3 [not markup] Cause. Remedy.", "stops": False}
    ]


def test_resumed_run_reports_the_same_as_an_uninterrupted_one(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any], tmp_path: Any
) -> None:
    values = [1, 3, 2, 4, 5, 6]
    whole = RunFolder.create(tmp_path, "ppo", "whole", "12345678")
    train(whole, trainer, make_method(), values)
    # "rising" reads updates 3 to 6, across the resume at 4; "high" reported at 2; updates after 4 are lost.
    train(folder, trainer, make_method(), values[:5])
    train(folder, trainer, make_method(done=4), values[4:])
    assert folder.diagnostics.read() == whole.diagnostics.read()
    assert [record["update"] for record in whole.diagnostics.read()] == [2, 6]


def test_stopping_rule_ends_training(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    rules = (rule("high", high, stops=True),)
    with pytest.raises(ConfigError, match="stopped at update 2: x is 3"):
        train(folder, trainer, make_method(), [1, 3], rules)
    assert folder.diagnostics.read()[0]["stops"] is True


def test_other_ranks_stop_without_printing(folder: RunFolder, other_rank: Any, make_method: Callable[..., Any]) -> None:
    assert train(folder, other_rank, make_method(), [3]) == ""
    assert not folder.diagnostics.path.exists()
    with pytest.raises(ConfigError):
        train(folder, other_rank, make_method(), [3], (rule("high", high, stops=True),))


def test_history_is_bounded_and_keeps_the_first_updates(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any]
) -> None:
    lengths: list[int] = []

    def watch(history: History) -> str | None:
        lengths.append(len(history))
        assert history[0]["x"] == 0
        return None

    train(folder, trainer, make_method(), [float(x) for x in range(FIRST + RECENT + 20)], (rule("watch", watch),))
    assert max(lengths) == FIRST + RECENT
