"""Sweeps that add seeds until they are decided: anytime-valid intervals, decisions, rounds of jobs."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from math import inf, sqrt
from pathlib import Path

import pytest

from postrain.evaluation.anytime import anytime_interval
from postrain.report.sequential import Sequential, decide
from postrain.report.sweep_cells import Cell, JobResult
from postrain.report.sweep_results import read_sweep
from postrain.report.sweep_summary import sentences
from tests.jobs.sweeps import Program, sweep
from tests.report.sweeps import make_sweep

METRIC = "eval/reward/total"
SEEDS = 12
RULE = Sequential(max_seeds=SEEDS)


def cell(label: str, values: Sequence[float]) -> Cell:
    """A setting with a finished job for each value."""
    jobs = tuple(
        JobResult(
            seed, Path(label), label, {"kind": label}, seed, "done", "", 1.0, METRIC, "max", value, {METRIC: value}, {}
        )
        for seed, value in enumerate(values)
    )
    return Cell({"kind": label}, label, jobs, {}, len(jobs))


class Noisy(Program):
    """The reward per unit of KL coefficient grows with the seed."""

    def reward(self, kl_coef: float, seed: int) -> float:
        return 1 - kl_coef * (1 + 0.01 * seed)


class Alternating(Program):
    """The reward of each setting changes its sign with every seed, so two settings are equal within a small margin."""

    def reward(self, kl_coef: float, seed: int) -> float:
        return kl_coef * (-1) ** seed


def test_anytime_interval_of_worked_numbers() -> None:
    # n = 4, effect 3: 1 + n·g = 37, k = (√37 / 0.05)^(1/2) = 11.0297; x < 10.0297 / (1 - 11.0297 / 37) = 14.2895.
    # Of 1, 2, 3, 4: s = 1.29099, half = s · √(3/4 · 14.2895) = 4.2263.
    found = anytime_interval([1.0, 2.0, 3.0, 4.0])
    assert found.value == 2.5
    assert (found.low, found.high) == pytest.approx((2.5 - 4.2263, 2.5 + 4.2263), abs=1e-4)
    # n = 2: k = √19 / 0.05 = 87 ≥ 19.
    assert anytime_interval([1.0, 2.0]).high == inf
    assert anytime_interval([1.0]).low == -inf


def test_interval_ends_where_the_mixture_likelihood_ratio_is_one_over_the_error() -> None:
    values, g = [0.3, 0.9, 0.4, 1.1, 0.2], 9.0
    found = anytime_interval(values, error=0.02)
    n, spread = len(values), sqrt(sum((v - found.value) ** 2 for v in values) / 4)
    x = ((found.value - found.low) / (spread / sqrt(n))) ** 2 / (n - 1)
    assert (1 + n * g) ** -0.5 * ((1 + x) / (1 + x / (1 + n * g))) ** (n / 2) == pytest.approx(1 / 0.02)


def test_comparisons_of_equal_settings_are_decided_in_at_most_5_percent_of_200_sweeps() -> None:
    rng, wrong = random.Random(0), 0
    for _ in range(200):
        seeds = [[rng.gauss(0, 1) for _ in range(3)] for _ in range(SEEDS)]
        looks = (list(zip(*seeds[:n], strict=True)) for n in range(3, SEEDS + 1))
        cells = ([cell(name, values) for name, values in zip("abc", look, strict=True)] for look in looks)
        wrong += any(decide(look, METRIC, "max", RULE).beaten for look in cells)
    assert wrong <= 10


def test_a_difference_of_three_standard_deviations_is_found_in_at_least_90_percent_of_200_sweeps() -> None:
    rng, found = random.Random(0), 0
    for _ in range(200):
        gaps = [rng.gauss(3, 1) for _ in range(SEEDS)]
        found += any(
            decide([cell("a", gaps[:n]), cell("b", [0.0] * n)], METRIC, "max", RULE).beaten == {"b": "a"}
            for n in range(3, SEEDS + 1)
        )
    assert found >= 180


def test_decisions_name_the_better_setting_by_the_direction_of_the_metric() -> None:
    one, other, equal = (
        cell("a", [1.0, 1.1, 1.2, 1.3]),
        cell("b", [0.0, 0.11, 0.19, 0.3]),
        cell("c", [1.0001, 1.0999, 1.2001, 1.2999]),
    )
    assert decide([one, other], METRIC, "max", RULE).beaten == {"b": "a"}
    assert decide([one, other], METRIC, "min", RULE).beaten == {"a": "b"}
    assert decide([one, equal], METRIC, "max", RULE).undecided == (("a", "c"),)
    assert decide([one, equal], METRIC, "max", Sequential(max_seeds=SEEDS, equal_within=0.01)).undecided == ()


def test_equal_differences_of_all_seeds_decide_nothing() -> None:
    # One of 32 items in each seed, for example: the spread between seeds is unknown.
    one, other = cell("a", [0.53125, 0.5, 0.5625]), cell("b", [0.5, 0.46875, 0.53125])
    assert decide([one, other], METRIC, "max", RULE).undecided == (("a", "b"),)
    assert decide([one, other], METRIC, "max", Sequential(max_seeds=SEEDS, equal_within=0.1)).undecided == (("a", "b"),)


def test_values_that_are_not_finite_are_left_out_of_the_differences() -> None:
    one, other = cell("a", [1.0, 1.1, 1.2, 1.3, inf]), cell("b", [0.0, 0.11, 0.19, 0.3, float("nan")])
    assert decide([one, other], METRIC, "max", RULE).beaten == {"b": "a"}


def test_setting_that_always_fails_adds_no_seeds_to_decided_ones(tmp_path) -> None:
    program = Alternating()
    program.broken = {f"kl_coef=0.5 seed={seed}" for seed in range(3)}
    words = [
        "-m",
        "method=ppo",
        "method.kl_coef=0.5,0.001,0.002",
        "seed=0,1,2",
        f"paths.sweeps={tmp_path}",
        "report=false",
    ]
    sweep(program, *words, "sweep.sequential={max_seeds:9,equal_within:0.01}")
    # Intervals at a third of the error are finite from four seeds on.
    assert {name.partition(" ")[2] for name in program.ran} == {f"seed={seed}" for seed in range(4)}


def test_beaten_settings_get_no_further_seeds_and_the_answer_names_them(tmp_path, capsys) -> None:
    program = Noisy()
    # The differences of rewards vary by a hundredth of themselves from seed to seed. Three pairs need four seeds.
    words = [
        "-m",
        "method=ppo",
        "method.kl_coef=0.1,0.4,0.8",
        "seed=0,1,2,3",
        f"paths.sweeps={tmp_path}",
        "report=false",
    ]
    assert sweep(program, *words, "sweep.sequential={max_seeds:9}") == 0
    assert len(program.ran) == 12
    (folder,) = tmp_path.glob("multirun/*")
    line = "Decided after 12 of at most 27 jobs, wrong with a probability of at most 5%: "
    assert any(each.startswith(line) for each in sentences(read_sweep(folder)))
    assert line.strip() in capsys.readouterr().out


def test_seeds_are_added_until_the_budget_ends_and_a_resumed_sweep_continues(tmp_path) -> None:
    program = Program()
    # The batch size changes nothing in this program: both settings are equal.
    words = ["-m", "method=ppo", "method.batch_size=4,8", "seed=0,1", f"paths.sweeps={tmp_path}", "report=false"]
    assert sweep(program, *words, "sweep.sequential={max_seeds:3}") == 0
    names = [f"batch_size={size} seed={seed}" for seeds in ((0, 1), (2,)) for size in (4, 8) for seed in seeds]
    assert program.ran == names
    (folder,) = tmp_path.glob("multirun/*")
    line = "Undecided after 6 of at most 6 jobs, wrong with a probability of at most 5%: "
    assert line + "batch_size=4 and batch_size=8 are open." in sentences(read_sweep(folder))
    program.ran.clear()
    assert sweep(program, f"resume={folder}", "sweep.sequential={max_seeds:4}", "report=false") == 0
    assert program.ran == ["batch_size=4 seed=3", "batch_size=8 seed=3"]


def test_equal_settings_end_a_sweep(tmp_path) -> None:
    program = Alternating()
    words = ["-m", "method=ppo", "method.kl_coef=0.001,0.002", "seed=0,1,2", f"paths.sweeps={tmp_path}", "report=false"]
    assert sweep(program, *words, "sweep.sequential={max_seeds:9,equal_within:0.02}") == 0
    assert len(program.ran) == 6
    (folder,) = tmp_path.glob("multirun/*")
    # Gaps -0.001, 0.001, -0.001: mean -0.00033, half width 0.0097 as in the formula of anytime_interval.
    assert any(line.endswith("]: equal within 0.02.") for line in sentences(read_sweep(folder)))


def test_beaten_setting_with_the_better_mean_of_fewer_seeds_is_not_the_best(tmp_path) -> None:
    # Setting 0 ends after four seeds, 0.1 behind setting 1 in each. Seeds 4 to 6 lower the mean of setting 1 to 0.71.
    behind, ahead = (0.80, 0.82, 0.81, 0.80), (0.900, 0.922, 0.911, 0.900, 0.5, 0.45, 0.4)
    path = make_sweep(
        tmp_path / "kl",
        seeds=range(7),
        measured=lambda cell, seed: ((behind, ahead)[cell][min(seed, 3 if cell == 0 else 6)], 0.5),
        sequential={"max_seeds": 12},
    )
    jobs = json.loads((path / "jobs.json").read_text())
    (path / "jobs.json").write_text(json.dumps([job for job in jobs if job["number"] not in (4, 5, 6)]))
    study = read_sweep(path)
    assert [(cell.label, cell.n) for cell in study.ranked] == [("kl_coef=0.5", 7), ("kl_coef=0.0", 4)]
    first, second, *_ = sentences(study)
    assert first.startswith("kl_coef=0.5 has the highest gold of the settings that are not beaten, 0.71 [")
    assert second.endswith("]: kl_coef=0.5 is better.")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method.kl_coef=0.1,0.4"], "sweep.seeds: sequential adds to them; give the first, as in seeds: [0, 1, 2]"),
        (["seed=0,1"], "sweep.sequential: compares settings; give at least two"),
        (["method.kl_coef=0.1,0.4", "sweep.sequential={error:0.1}"], "sweep.sequential.max_seeds: required"),
        (["method.kl_coef=0.1,0.4", "seed=0,1", "sweep.sequential.eror=0.1"], "did you mean sweep.sequential.error?"),
    ],
)
def test_a_study_to_which_no_seed_can_be_added_is_one_line(words, message, tmp_path, capsys) -> None:
    given = ["-m", "method=ppo", f"paths.sweeps={tmp_path}", "sweep.sequential={max_seeds:3}", *words]
    assert sweep(Program(), *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
