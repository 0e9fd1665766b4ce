"""What is chosen to be shown, and the little arithmetic behind it."""

from __future__ import annotations

import random

import pytest

from postrain.report.build import flat, pairs
from postrain.report.panels import arrange, before_and_after, headlines, smooth
from postrain.report.pictures import MOST_POINTS, thinned
from postrain.report.run_data import Curve, Sample


def curve(*values: float) -> Curve:
    return list(range(1, len(values) + 1)), list(values)


def test_smoothing_is_a_mean_of_neighbours() -> None:
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
    assert before_and_after(curve(1, 9, 2)) == (1, 2)
    # Forty values: the first two and the last two.
    assert before_and_after(curve(0, 2, *[5.0] * 36, 7, 9)) == (1, 8)


def test_held_out_numbers_replace_training_numbers() -> None:
    metrics = {name: curve(1, 2) for name in ("loss", "accuracy", "eval/accuracy", "kl/exact", "eval/loss")}
    assert [name for name, _, _ in headlines(metrics)] == ["eval/accuracy", "eval/loss", "kl/exact"]


def test_every_metric_is_somewhere_once() -> None:
    rng = random.Random(0)
    names = ["reward/total", "eval/reward/total", "reward/mood", "kl/k1", "perf/seconds", "odd", "eval/odd", "x/y"]
    panels, constant = arrange({name: curve(*(rng.random() for _ in range(5))) for name in names})
    assert sorted(name for panel in panels for name in panel.names) == sorted(names)
    assert constant == []
    assert panels[0].names == ("reward/total", "eval/reward/total")
    assert [panel.names for panel in panels if panel.title == "Odd"] == [("eval/odd", "odd")]


def test_what_never_changes_is_only_named() -> None:
    panels, constant = arrange({"kl/coef": curve(0.1, 0.1), "loss": curve(2, 1), "tokens": curve(1, 2)})
    assert [panel.names for panel in panels] == [("loss",)]
    assert constant == ["kl/coef"]


def test_the_only_part_of_a_total_is_not_shown_twice() -> None:
    panels, _ = arrange({"reward/total": curve(1, 2), "reward/mood": curve(1, 2), "reward/other": curve(3, 2)})
    assert [panel.names for panel in panels] == [("reward/total",), ("reward/other",)]


def test_a_reward_that_is_gold_itself_is_not_shown_twice() -> None:
    parts = {"eval/reward/mood": curve(1, 2), "gold/mood": curve(1, 2), "eval/reward/total": curve(3, 4)}
    panels, _ = arrange(parts | {"gold/total": curve(3, 4)})
    assert [panel.names for panel in panels] == [("eval/reward/total",), ("gold/total", "gold/mood")]
    scores = {"reward/mood": 0.5, "gold/mood": 0.5, "gold/total": 0.4, "reward/total": 0.4}
    first, last = (Sample(update, 0, "prompt", "text", scores) for update in (0, 1))
    assert pairs([first, last])[0].changes == [("reward/total", 0.4, 0.4), ("reward/mood", 0.5, 0.5)]
    other = Sample(1, 0, "prompt", "text", scores | {"gold/mood": 0.6})
    assert len(pairs([first, other])[0].changes) == 4


def test_pairs_match_prompts_of_the_first_and_the_last_evaluation() -> None:
    def sample(update: int, row: int, **scores: float) -> Sample:
        return Sample(update, row, f"prompt {row}", f"{update}", scores)

    found = pairs(
        [sample(0, 2, a=0.1), sample(0, 1), sample(5, 1), sample(9, 1, b=1.0), sample(9, 2, a=0.3), sample(9, 3)]
    )
    assert [(pair.row, pair.before.update, pair.after.update) for pair in found] == [(2, 0, 9), (1, 0, 9)]
    assert [pair.changes for pair in found] == [[("a", 0.1, 0.3)], [("b", None, 1.0)]]
    assert pairs([]) == []


def test_flat() -> None:
    record = {"rows": 5, "train": {"dropped": 0, "share": 0.123456}, "none": None, "list": ["a", 2], "dirty": True}
    assert flat(record) == [
        ("rows", "5"), ("train dropped", "0"), ("train share", "0.12"), ("list", "a, 2"), ("dirty", "yes"),
    ]  # fmt: skip
