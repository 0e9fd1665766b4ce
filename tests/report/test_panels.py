"""The choice of panels and headline metrics, and their arithmetic."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from postrain.report.blocks import Cell, estimate
from postrain.report.charts import MOST_POINTS, spans_decades, thinned
from postrain.report.page import flat, link
from postrain.report.panels import arrange, before_and_after, best_of, ends_text, headlines, smooth
from postrain.report.values import Curve


def curve(*values: float) -> Curve:
    return list(range(1, len(values) + 1)), list(values)


def test_smooth_is_a_centred_mean() -> None:
    # Window 3: (1 + 5) / 2, (1 + 5 + 3) / 3, (5 + 3 + 7) / 3, (3 + 7) / 2.
    assert smooth([1, 5, 3, 7], 3) == [3, 3, 5, 5]
    assert smooth([4.0, 2.0], 1) == [4.0, 2.0]
    assert smooth([], 5) == []


@pytest.mark.parametrize("count", [1, 7, MOST_POINTS, MOST_POINTS + 1, 5000])
def test_thinning_keeps_first_and_last(count: int) -> None:
    xs, ys = thinned(range(count), [float(x) for x in range(count)])
    assert len(xs) == len(ys) <= MOST_POINTS + 1
    assert (xs[0], xs[-1], ys[-1]) == (0, count - 1, count - 1)


def test_before_and_after_average_a_noisy_curve() -> None:
    metrics = {"short": curve(1, 9, 2), "loss": (long := curve(0, 2, *[5.0] * 36, 7, 9)), "gold/total": long}
    assert before_and_after(metrics, "short") == (1, 2)
    # Forty values: the first two and the last two.
    assert before_and_after(metrics, "loss") == (1, 8)
    # Evaluations have the same rows: the change from the first to the last one is that of the table and the verdict.
    assert before_and_after(metrics | {"eval/loss": long}, "eval/loss") == (0, 9)
    assert headlines({"gold/total": long}) == [("gold/total", 0, 9)]


def test_a_metric_measured_once_has_no_value_before_training() -> None:
    assert before_and_after({"loss": curve(3)}, "loss") == (None, 3)
    assert (ends_text((None, 0.25)), ends_text((0.25, 0.5))) == ("0.25", "0.25 → 0.50")


def test_headlines_prefer_held_out_metrics() -> None:
    metrics = {name: curve(1, 2) for name in ("loss", "accuracy", "eval/accuracy", "kl/exact", "eval/loss")}
    assert [name for name, _, _ in headlines(metrics)] == ["eval/accuracy", "eval/loss", "kl/exact"]


def test_every_metric_is_in_one_panel() -> None:
    rng = random.Random(0)
    names = ["reward/total", "eval/reward/total", "reward/mood", "kl/k1", "perf/seconds", "odd", "eval/odd", "x/y"]
    panels, constant = arrange({name: curve(*(rng.random() for _ in range(5))) for name in names})
    assert sorted(name for panel in panels for name in panel.names) == sorted(names)
    assert constant == []
    assert panels[0].names == ("reward/total", "eval/reward/total")
    assert [panel.names for panel in panels if panel.title == "Odd"] == [("eval/odd", "odd")]


def test_constant_metrics_have_no_panel() -> None:
    panels, constant = arrange({"kl/coef": curve(0.1, 0.1), "loss": curve(2, 1), "tokens": curve(1, 2)})
    assert [panel.names for panel in panels] == [("loss",)]
    assert constant == ["kl/coef"]


def test_only_component_of_a_total_has_no_panel() -> None:
    panels, _ = arrange({"reward/total": curve(1, 2), "reward/mood": curve(1, 2), "reward/other": curve(3, 2)})
    assert [panel.names for panel in panels] == [("reward/total",), ("reward/other",)]


def test_reward_component_equal_to_gold_has_no_panel() -> None:
    parts = {"eval/reward/mood": curve(1, 2), "gold/mood": curve(1, 2), "eval/reward/total": curve(3, 4)}
    panels, _ = arrange(parts | {"gold/total": curve(3, 4)})
    assert [panel.names for panel in panels] == [("eval/reward/total",), ("gold/total", "gold/mood")]


def test_best_is_by_direction_with_ties() -> None:
    values = {"a": 1.0, "b": 3.0, "c": 3.0, "d": None, "e": float("nan")}
    assert best_of("gold/total", values) == {"b", "c"}
    assert best_of("eval/loss", values) == {"a"}
    assert best_of("eval/loss", values, "max") == {"b", "c"}
    # Without a direction, another value or a difference, nothing is the best.
    assert best_of("eval/completion/length", values) == best_of("loss", {"a": 1.0}) == set()
    assert best_of("loss", {"a": 1.0, "b": 1.0}) == set()


def test_logarithmic_axis_needs_decades() -> None:
    assert spans_decades([1e-5, 1e-4, 1e-3])
    assert not any(spans_decades(values) for values in ([0.0, 100.0], [1.0, 30.0], [5.0], [1.0, float("inf")]))


def test_cell_has_an_interval_only_where_there_is_one() -> None:
    assert estimate(0.5, 0.25, 0.75, 8, best=True) == Cell("0.50", "0.25 … 0.75, n=8", True)
    assert estimate(0.5, float("-inf"), float("inf"), 1) == Cell("0.50", "n=1")
    assert estimate(0.5, None, None, None) == Cell("0.50")
    assert estimate(None, None, None, None) == Cell("–")


def test_links_are_relative_and_survive_odd_names(tmp_path: Path) -> None:
    assert link(tmp_path / "jobs" / "a#1?" / "report.html", tmp_path / "out") == "../jobs/a%231%3F/report.html"


def test_flat_joins_lists_and_drops_empty_values() -> None:
    record = {"rows": 5, "train": {"dropped": 0, "share": 0.123456}, "none": None, "list": ["a", 2], "dirty": True}
    assert flat(record) == [
        ("rows", "5"), ("train dropped", "0"), ("train share", "0.12"), ("list", "a, 2"), ("dirty", "yes"),
    ]  # fmt: skip
