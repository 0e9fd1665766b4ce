"""The verdict on a run: did it learn, can it be trusted, and the next step."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from postrain.evaluation.estimate import newcombe
from postrain.report.changes import Change, changes, interval_after
from postrain.report.console import print_result
from postrain.report.folders import Run
from postrain.report.headline_cards import headline_section
from postrain.report.held_out import HeldOutRows
from postrain.report.samples import Sample
from postrain.report.verdict import WARNING_RULES, verdict
from postrain.training.diagnostic_rules import RULES

RATE = {"config": {"method": {"learning_rate": 3e-4}}, "reproduce": "python train.py method=ppo seed=4"}


def run_with(
    after: float = 0.5,
    metric: str = "eval/reward/total",
    scores: Callable[[int], float] | None = None,
    *,
    state: str = "done",
    metrics: dict[str, tuple[float, float]] | None = None,
    **manifest: Any,
) -> Run:
    """A run whose metric went from 0.25 to `after`; `scores` are those of the last samples by row."""
    known = {metric: (0.25, after), "reward/total": (0.2, 0.4), **(metrics or {})}
    samples = []
    if scores is not None:
        first = [Sample(0, row, "p", "c", {"reward/total": 0.25 + 0.01 * (row % 2 * 2 - 1)}) for row in range(32)]
        samples = first + [Sample(9, row, "p", "c", {"reward/total": scores(row)}) for row in range(32)]
    return Run(
        path=Path("runs/x"),
        status={"status": state},
        manifest={**RATE, "data": {"rows_train": 2000, "rows_eval": 128}, "seeds": {"seed": 4}, **manifest},
        metrics={name: ([0, 9], list(both)) for name, both in known.items()},
        updates=9,
        samples=samples,
    )


def test_change_of_scores_is_paired_by_prompt() -> None:
    # Every prompt gains 0.25 ± 0.01: the interval is far narrower than that of two separate means.
    (change, *_) = changes(run_with(0.5, scores=lambda row: 0.5))
    assert change.gap is not None
    assert (change.gap.n, change.gap.value) == (32, pytest.approx(0.25))
    # Student's t of 31 degrees of freedom 2.04 times 0.0102 / sqrt(32).
    assert change.gap.high - change.gap.value == pytest.approx(0.0037, abs=1e-4)
    assert change.decided
    assert change.better


def test_change_of_an_accuracy_has_newcombes_interval() -> None:
    found = newcombe(0.5, 0.75, 100)
    # Wilson: 0.5 in 0.4038 ... 0.5962, 0.75 in 0.6569 ... 0.8245.
    assert found.low == pytest.approx(0.25 - (0.0931**2 + 0.0962**2) ** 0.5, abs=1e-3)
    assert found.high == pytest.approx(0.25 + (0.0745**2 + 0.0962**2) ** 0.5, abs=1e-3)


def test_a_metric_without_interval_has_the_reason() -> None:
    (change, *_) = changes(run_with(3.0, "eval/perplexity"))
    assert (change.gap, change.interval) == (None, "no interval: not saved per row")
    # A sum per answer, averaged over pairs.
    (change, *_) = changes(run_with(3.0, "eval/logps/chosen"))
    assert change.interval == "no interval: not saved per row"
    # The value is outside the interval of the samples, so the metric is of other completions.
    (change, *_) = changes(run_with(0.9, scores=lambda row: 0.5))
    assert change.interval == "no interval: not saved per row"


@pytest.mark.parametrize(("count", "has_interval"), [(7, False), (8, True)])
def test_a_perplexity_of_few_rows_has_no_interval(count: int, has_interval: bool) -> None:
    losses = [1.0 + row / 10 for row in range(count)]
    rows = HeldOutRows(losses, [loss + 0.1 for loss in losses], [1.0] * count)
    run = replace(run_with(3.0, "eval/perplexity"), held_out={"loss": rows})
    (change, *_) = changes(run)
    assert (change.gap is not None) == has_interval
    assert ("fewer than 8 rows" in change.interval) != has_interval
    assert (interval_after(run, [], "eval/perplexity") is not None) == has_interval


def test_rows_that_a_score_does_not_apply_to_do_not_count_as_rows_of_an_interval() -> None:
    rows = HeldOutRows([0.0] * 9, [1.0] * 9, [1.0] * 7 + [0.0] * 2)
    run = replace(run_with(1.0, "gold/steps"), held_out={"gold/steps": rows})
    (change, *_) = changes(run)
    assert change.interval == "no interval: fewer than 8 rows"
    assert interval_after(run, [], "gold/steps") is None


@pytest.mark.parametrize(
    ("run", "learned", "following"),
    [
        (run_with(scores=lambda row: 0.5), "It learned: eval reward 0.25 → 0.50 (change +0.25, 95 % interval ",
         "Next: repeat it with three seeds: python train.py -m method=ppo seed=0,1,2"),
        (run_with(0.26, scores=lambda row: 0.26 + (row % 2 - 0.5)),
         "Better, but within the error: eval reward 0.25 → 0.26 (undecided: ",
         "Next: train longer: python train.py method=ppo seed=4 method.updates=18"),
        (run_with(0.25, scores=lambda row: 0.25), "Unchanged: eval reward 0.25 → 0.25 (",
         "Next: compare learning rates: python train.py -m method=ppo seed=4 "
         "method.learning_rate=0.0001,0.0003,0.0009"),
        (run_with(0.2, scores=lambda row: 0.2), "It got worse: ",
         "Next: compare learning rates: python train.py -m method=ppo seed=4 "
         "method.learning_rate=0.0001,0.0003,0.0009"),
        (replace(run_with(), metrics={"eval/reward/total": ([0, 9], [0.0, 0.0])}), "Unchanged: eval reward 0 → 0 (",
         "Next: another reward, or an easier task, that tells completions apart: python train.py method=ppo seed=4 "
         "reward=NAME"),
        (run_with(state="interrupted"), "It improved: eval reward 0.25 → 0.50 (no interval: not saved per row) (as of",
         "Next: resume it: python train.py resume=runs/x"),
        (run_with(reproduce="python mine.py"), "It improved: ",
         "Next: read its samples, or talk to it: python -m postrain.cli.chat runs/x"),
        (Run(path=Path("runs/x"), status={"status": "failed"}), "Whether it learned is unknown: ",
         "Next: fix the cause, then resume it: python train.py resume=runs/x"),
    ],
)  # fmt: skip
def test_verdict_states_the_change_and_one_command(run: Run, learned: str, following: str) -> None:
    found = verdict(run)
    assert found.learned.startswith(learned)
    assert found.lines[2] == following


def test_verdict_names_every_reason_for_doubt() -> None:
    doubtful = run_with(
        scores=lambda row: 0.5,
        metrics={"eval/kl/exact": (0.0, 1.5), "eval/completion/distinct": (1.0, 0.03)},
        stand_in_for="gpt2",
        data={"rows_train": 40},
    )
    assert verdict(doubtful).trust == (
        "Doubtful: x stood in for gpt2; the completions collapsed (3% of the completions are different (100% before "
        "training)); KL(policy‖reference) is 1.50 nats/token; only 40 training rows; one seed (4), so the spread "
        "between seeds is not known."
    ).replace("x stood", f"{doubtful.model} stood")
    clean = verdict(run_with(scores=lambda row: 0.5)).trust
    assert clean.startswith("No warning sign (no collapse, 2000 training rows), but one seed (4)")


def test_cards_of_a_run_with_the_initial_evaluation_only_have_one_value_each() -> None:
    run = replace(run_with(state="interrupted"), metrics={"gold/total": ([0], [0.25]), "loss": ([1, 2], [3.0, 1.0])})
    text = repr(headline_section(run, changes(run)))
    assert "measured once, at update 0" in text
    assert text.count("0.25") == 1
    # The loss has two values, and those are of training data.
    assert text.count("was") == text.count("no interval: training data") == 1
    alone = replace(run, metrics={"gold/total": ([0], [0.25])})
    assert "Before and after" not in repr(headline_section(alone, []))


def test_console_shows_at_most_ten_metrics_and_the_verdict(full_run: Path) -> None:
    with (console := Console(width=160)).capture() as captured:
        print_result(full_run, console)
    lines = captured.get().splitlines()
    assert lines[0].startswith("held-out, before → after")
    assert "95 % interval" in lines[1]
    assert len(lines) <= 2 + 10 + 3
    assert lines[-3].startswith("It learned: eval reward 0.24 → ")
    assert lines[-2].startswith("Doubtful: nano stood in for gpt2; ")
    assert json.loads((full_run / "manifest.json").read_text())["reproduce"] in lines[-1]


def test_gold_that_contradicts_the_reward_is_named() -> None:
    scores = {"reward/total": 0.5, "gold/total": 0.1}
    run = run_with(scores=lambda row: 0.5, metrics={"gold/total": (0.25, 0.1)})
    samples = [replace(one, scores=scores if one.update else {**one.scores, "gold/total": 0.25}) for one in run.samples]
    assert "; but gold 0.25 → 0.10 (change -0.15, " in verdict(replace(run, samples=samples)).learned


def test_a_change_without_direction_is_neither_better_nor_worse() -> None:
    assert Change("eval/completion/length", 20, 30).better is None
    assert Change("eval/loss", 2, 1).better is True


def test_warning_rules_are_diagnostic_rules() -> None:
    assert {rule.name for rule in RULES} >= set(WARNING_RULES)


def test_resume_command_of_the_verdict_is_quoted_for_hydra() -> None:
    run = Run(path=Path("/tmp/x=ü"), status={"status": "failed"})
    assert verdict(run).lines[2].endswith("""python train.py "resume='/tmp/x=ü'\"""")
