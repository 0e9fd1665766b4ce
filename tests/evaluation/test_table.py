"""Console tables of evaluations in terminals of several widths."""

from __future__ import annotations

import pytest
from rich.console import Console

from postrain.evaluation import table
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.result_files import ModelResults
from postrain.evaluation.task import EvalResult

NAMES = ("study-1-sft-long_setting", "nano", "study-1-sft-short")


def models():
    """Three models with one metric of four prompts: 1.0, 0.5 and 0.0."""
    for name, share in zip(NAMES, (1.0, 0.5, 0.0), strict=True):
        values = [float(number < share * 4) for number in range(4)]
        records = tuple({"row": row, "score": value} for row, value in enumerate(values))
        result = EvalResult(metrics={"score": Estimate.share(values)}, records=records)
        names = {"name": name, "path": name, "data": "rows"}
        yield ModelResults(
            **names, results={"task": result}, seconds={"task": 1.0}, parameters=1, failed=(), responses=()
        )


def printed(width):
    console = Console(width=400)
    with console.capture() as capture:
        for one in table.tables([*models()], width):
            console.print(one)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_a_wide_terminal_shows_one_table():
    lines = printed(400)
    assert lines[0] == "value [95 % interval]"
    assert sum(line.startswith("task/score") for line in lines) == 1


@pytest.mark.parametrize(("width", "expected"), [(100, 2), (60, 3), (20, 5)])
def test_tables_fit_the_terminal(width, expected):
    lines = printed(width)
    rows = [line for line in lines if line.startswith("task/score")]
    assert len(rows) == expected
    assert max(map(len, lines[1:])) <= max(width, 60)
    cells = [cell for row in rows for cell in row.split("  ")[1:] if cell.strip() and cell.strip() != "4"]
    assert len(cells) == 5


def test_headers_are_broken_and_differences_keep_their_minus():
    text = "\n".join(printed(400))
    assert "study-1-sft-long_setting" not in text
    assert "−\u00a0nano" in text
