"""The progress line: its text, and how often it is printed without a terminal."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from postrain.formatting import clock, duration, figure, short, shortened, without_middle
from postrain.training.progress import ProgressLine, headline_text, is_printed, progress_text


def test_progress_text_has_update_metrics_pace_and_time_left() -> None:
    numbers = headline_text(
        ("reward/total", "kl/exact", "eval/reward/total"), {"reward/total": 0.42, "kl/exact": 0.0312}
    )
    assert numbers == "reward 0.42  kl 0.031"
    # 63 updates are left, at 1.3 s each: 81.9 s.
    assert progress_text(37, 100, numbers, 1.3) == "update 37/100  reward 0.42  kl 0.031  1.3 s/update · 01:22 left"


@pytest.mark.parametrize("total", [1, 2, 17, 18, 19, 20, 21, 100, 359, 1000, 12345])
@pytest.mark.parametrize("first", [0, 5])
def test_at_most_twenty_lines_are_printed(total: int, first: int) -> None:
    printed = [done for done in range(first + 1, total + 1) if is_printed(done, total, first)]
    assert len(printed) <= 20
    if printed:
        assert printed[0] == first + 1
        assert printed[-1] == total


def test_without_a_terminal_plain_lines_are_printed(trainer: Any, make_method: Callable[..., Any]) -> None:
    out = io.StringIO()
    line = ProgressLine("ppo · nano", Console(file=out, width=60))
    method = make_method(updates=2)
    line.on_train_start(trainer, method)
    method.step(reward__total=0.4, eval__x=1.0)
    line.on_train_batch_end(trainer, method, None, None, 0)
    method.step(kl__exact=12.34)  # No reward in this update: the last value is shown.
    line.on_train_batch_end(trainer, method, None, None, 1)
    line.on_train_end(trainer, method)
    first, second = out.getvalue().splitlines()
    assert first.startswith("ppo · nano  update 1/2  reward 0.40  ")
    assert second.startswith("ppo · nano  update 2/2  reward 0.40  kl 12.3  ")
    assert second.endswith("00:00 left")


def test_on_a_terminal_a_bar_is_shown(trainer: Any, make_method: Callable[..., Any]) -> None:
    out = io.StringIO()
    line = ProgressLine("[ppo]", Console(file=out, force_terminal=True, width=120))
    method = make_method(updates=1)
    line.on_train_start(trainer, method)
    method.step(reward__total=0.4)
    line.on_train_batch_end(trainer, method, None, None, 0)
    line.on_train_end(trainer, method)
    assert "[ppo]" in out.getvalue()
    assert "update 1/1  reward 0.40" in out.getvalue()


def test_other_ranks_print_nothing(other_rank: Any, make_method: Callable[..., Any]) -> None:
    out = io.StringIO()
    line = ProgressLine("ppo", Console(file=out))
    method = make_method(updates=1)
    line.on_train_start(other_rank, method)
    method.step()
    line.on_train_batch_end(other_rank, method, None, None, 0)
    assert out.getvalue() == ""


def test_short_names_and_number_formats() -> None:
    names = ("reward/total", "kl/exact", "eval/reward/total", "token_accuracy", "ratio/max")
    assert [short(name) for name in names] == ["reward", "kl", "eval reward", "token accuracy", "ratio max"]
    values = [0.0, 0.42, 0.0314, -1.5, 24.13, 371.2, 4200.0, 1e-5, float("nan")]
    assert [figure(value) for value in values] == [
        "0", "0.42", "0.031", "-1.50", "24.1", "371", "4.20e+03", "1.00e-05", "nan",
    ]  # fmt: skip
    assert [clock(seconds) for seconds in (0, 42, 3723)] == ["00:00", "00:42", "1:02:03"]
    assert [duration(seconds) for seconds in (0.045, 1.3, 126)] == ["45 ms", "1.3 s", "2.1 min"]


def test_long_texts_lose_their_end_or_their_middle() -> None:
    assert [shortened(text, 4) for text in ("abcd", "abcde")] == ["abcd", "abc…"]
    assert [without_middle(text, 4) for text in ("abcd", "abcdef")] == ["abcd", "ab […] ef"]
