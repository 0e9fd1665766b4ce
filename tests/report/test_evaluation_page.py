"""An evaluation's page: models side by side, test-time scaling, answers, and files of any shape."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from postrain.report import write_comparison, write_report
from postrain.report.blocks import Cell
from postrain.report.evaluation_page import by_category, named_models, table, warnings
from postrain.report.evaluation_pictures import compared, lengths, perplexities
from postrain.report.evaluations import Number, as_number, read_evaluation
from tests.report.test_report import ODD, checked

NAMES = ("nano", "sft-nano 2026-01-02_03-04-05-0123abcd")


def number(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 8}


def model_entry(name: str, value: float, data: str = "sums") -> dict[str, Any]:
    points = [{"label": f"best of {n}", "tokens": 9 * n, "seconds": 0.1 * n, "score": number(value)} for n in (1, 2)]
    tasks = {
        "gold": {"metrics": {"concise": number(0.5), "total": number(value)}, "example": "<|user|>2 + 2<|end|>"},
        "perplexity": {"metrics": {"perplexity": number(8 * value)}, "example": "<|user|>2 + 2<|end|>"},
        "best_of_n": {"metrics": {"accuracy": number(value)}, "curves": {"best of n": points}},
        "rewards": {"metrics": {}, "notes": ["needs a reward"]},
    }
    return {"name": name, "path": f"runs/{name}", "data": data, "tasks": tasks}


def make_evaluation(path: Path, names: tuple[str, ...] = NAMES, data: str = "sums") -> Path:
    path.mkdir(parents=True)
    models = [model_entry(name, 0.3 + 0.2 * index, data) for index, name in enumerate(names)]
    gap = {"model": names[0], "against": names[-1], "task": "gold", "metric": "total", **number(-0.2)}
    stats = {"models": models, "differences": [gap] if len(names) > 1 else [], "notes": ["a note at the top"]}
    (path / "evaluation_stats.json").write_text(json.dumps(stats))
    lines: dict[str, list[dict[str, Any]]] = {
        "perplexity": [{"row": row, "perplexity": 2.0 + row**2} for row in range(9)],
        "lengths": [{"row": row, "tokens": row, "finished": row % 3 > 0} for row in range(9)],
        "queries": [
            {
                "row": "paris",
                "category": "factual",
                "tokens": 2.5,
                "wordings": [
                    {"prompt": "<b>?", "response": "Paris", "right": True, "why": "ok", "tokens": 2, "finished": True},
                    {"prompt": "<i>?", "response": "Rome", "right": False, "why": "no", "tokens": 3, "finished": False},
                ],
            }
        ],
    }
    for one in models:
        one["tasks"] |= {"lengths": {"metrics": {"tokens": number(4)}}, "queries": {"metrics": {}}}
    (path / "evaluation_stats.json").write_text(json.dumps(stats))
    for name, records in lines.items():
        written = [{"model": who, **record} for who in names for record in records]
        (path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in written))
    responses = [{"model": name, "prompt": "2 + 2 = ?", "completion": f"by {name}", "gold": 0.5} for name in names]
    (path / "sample_responses.json").write_text(json.dumps(responses))
    (path / "status.json").write_text('{"status": "done"}')
    (path / "manifest.json").write_text(json.dumps({"reproduce": "python -m postrain.evaluate", "data": {}}))
    return path


def test_evaluation_page_compares_models(tmp_path: Path) -> None:
    page = write_report(make_evaluation(tmp_path / "e"), tmp_path / "out")
    text = checked(page.read_text(encoding="utf-8"))
    for wanted in (
        "2 models",
        "gold total: nano is worse than sft-nano 0123abcd, difference -0.20, 95 % interval -0.30 … -0.10, n=8.",
        "perplexity: nano has 2.40, 95 % interval 2.30 … 2.50, n=8.",
        "a note at the top",
        "difference to sft-nano 0123abcd",
        "Test-time scaling",
        "factual: 1 of 2 correct",
        "&lt;b&gt;?",
        "by nano",
        "&lt;|user|&gt;2 + 2&lt;|end|&gt;",
        "<b>rewards</b>: needs a reward",
        "python -m postrain.evaluate",
    ):
        assert wanted in text, wanted
    names = {path.name for path in page.parent.iterdir()}
    assert names == {"report.html", "model_comparison.png", "perplexity_distribution.png", "response_lengths.png"}


def test_table_has_best_values_and_differences(tmp_path: Path) -> None:
    found = read_evaluation(make_evaluation(tmp_path / "e"))
    columns, rows = table("gold", named_models([found]), found.differences)
    assert columns == ["", "nano", "sft-nano 0123abcd", "difference to sft-nano 0123abcd"]
    assert rows[1] == (
        "total",
        [
            Cell("0.30", "0.20 … 0.40, n=8"),
            Cell("0.50", "0.40 … 0.60, n=8", True),
            Cell("-0.20", "-0.30 … -0.10, n=8"),
        ],
    )
    assert rows[0][1][2] == Cell("–")


def test_bars_are_central_metrics_of_several_models_or_shares_of_one(tmp_path: Path) -> None:
    both = read_evaluation(make_evaluation(tmp_path / "both")).models
    assert [name for name, _ in compared(both)] == [
        "gold total",
        "perplexity perplexity",
        "best of n accuracy",
        "lengths tokens",
    ]
    one = read_evaluation(make_evaluation(tmp_path / "one", NAMES[:1])).models
    ((_, rows),) = compared(one)
    assert [name for name, _, _ in rows] == ["gold concise", "gold total", "best of n accuracy"]
    # Of lengths 0 to 8, the multiples of 3 are truncated.
    assert [(name, values) for name, _, values in lengths(one)] == [
        ("finished", [1, 2, 4, 5, 7, 8]),
        ("cut", [0, 3, 6]),
    ]
    assert [name for name, _, _ in lengths(both)] == list(NAMES)
    queries = [replace(model, records={"queries": model.records["queries"]}) for model in one]
    assert [(name, values) for name, _, values in lengths(queries)] == [("finished", [2]), ("cut", [3])]
    assert [(task, len(groups)) for task, groups in perplexities(both)] == [("perplexity", 2)]


def test_evaluations_on_different_data_have_a_warning(tmp_path: Path) -> None:
    one = make_evaluation(tmp_path / "a", NAMES[:1])
    other = make_evaluation(tmp_path / "b", NAMES[:1], data="stories")
    found = [read_evaluation(path) for path in (one, other)]
    models = named_models(found)
    assert [one.name for one in models] == ["nano, a", "nano, b"]
    assert warnings(found, models)[0].startswith("Not measured on the same data (nano, a: sums; nano, b: stories)")
    for path in (one, other):
        (path / "perplexity.jsonl").unlink()
        (path / "lengths.jsonl").unlink()
    checked(write_comparison([one, other], tmp_path / "out").read_text(encoding="utf-8"))


def test_number_without_a_value_is_none() -> None:
    assert as_number({"value": 1, "low": "nan", "high": "inf", "n": 4}) == Number(1.0, None, None, 4)
    assert as_number({"value": "nan"}) is as_number([]) is as_number(None) is None


def test_queries_survive_records_of_any_shape() -> None:
    odd = [{"prompt": "p", "response": "r", "right": 1}, {"prompt": 3, "response": "r"}, {}, 4]
    records: list[dict[str, Any]] = [{"wordings": odd}, {"wordings": 3}, {}]
    assert by_category(records) == {"other": [{"prompt": "p", "response": "r", "right": 1, "row": None}]}


@pytest.mark.parametrize("seed", range(3))
def test_evaluation_page_survives_odd_files(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = make_evaluation(tmp_path / "e")

    def odd(value: Any) -> Any:
        if rng.random() < 0.15:
            return rng.choice(ODD)
        if isinstance(value, dict):
            return {name: odd(item) for name, item in value.items()}
        return [odd(item) for item in value] if isinstance(value, list) else value

    for file in path.iterdir():
        content = file.read_text()
        if file.suffix == ".json":
            file.write_text(json.dumps(odd(json.loads(content))))
        else:
            file.write_text("".join(json.dumps(odd(json.loads(line))) + "\n" for line in content.splitlines()) + '{"ro')
    checked(write_report(path).read_text(encoding="utf-8"))


def test_truncated_file_is_listed(tmp_path: Path) -> None:
    path = make_evaluation(tmp_path / "e", NAMES[:1])
    stats = path / "evaluation_stats.json"
    stats.write_text(stats.read_text()[:50])
    text = checked(write_report(path).read_text(encoding="utf-8"))
    assert "evaluation_stats.json is missing or damaged" in text
    assert "No model was measured" in text
