"""Sweeps that add seeds until they are decided: which settings are beaten, which are equal, which are still open.

Pure: settings with their finished jobs in, decisions out. jobs/sequential.py runs the seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from math import inf
from typing import Annotated, Any

from annotated_types import Ge, Gt, Lt

from postrain.config.schema import Section
from postrain.evaluation.anytime import anytime_interval
from postrain.evaluation.estimate import Interval
from postrain.metrics import Direction
from postrain.report.sweep_cells import Cell, values_of


@dataclass(frozen=True, kw_only=True)
class Sequential(Section):
    """When a sweep stops adding seeds. All settings with equal seeds share data order and sampling noise, so their
    differences are paired; the intervals are anytime-valid, so looking after every seed costs no confidence."""

    max_seeds: Annotated[int, Ge(2)] | None = None
    """Seeds per setting at which an undecided sweep ends; null adds none to those of the study."""
    error: Annotated[float, Gt(0), Lt(1)] = 0.05
    """Probability of any wrong decision in the sweep, at most. It is divided among the pairs of settings."""
    equal_within: Annotated[float, Gt(0)] | None = None
    """Settings whose difference is certainly smaller are equal, in the unit of the metric; null decides only whether a
    difference is 0."""

    def equal(self, gap: Interval) -> bool:
        """Whether a difference is certainly smaller than `equal_within`."""
        return self.equal_within is not None and -self.equal_within < gap.low <= gap.high < self.equal_within


@dataclass(frozen=True)
class Decisions:
    """What is decided so far, by the labels of the settings."""

    beaten: Mapping[str, str]
    """By beaten setting, the one that is certainly better."""
    undecided: tuple[tuple[str, str], ...]
    """Pairs of settings that are not beaten and neither different nor equal."""

    def has_answer(self, cells: Sequence[Cell]) -> bool:
        """Whether one setting beats all others, or all that are not beaten are equal."""
        return len(cells) - len(self.beaten) == 1 or not self.undecided


def decide(cells: Sequence[Cell], metric: str, direction: Direction, rule: Sequential) -> Decisions:
    """The decisions after the finished jobs. A beaten setting stays beaten, since all intervals hold at once."""
    sign = 1 if direction == "max" else -1
    beaten: dict[str, str] = {}
    same: set[tuple[str, str]] = set()
    pairs = [*combinations(cells, 2)]
    for one, other in pairs:
        gap = paired_interval(one, other, metric, rule, len(pairs))
        if gap.low > 0 or gap.high < 0:
            better, worse = (one, other) if sign * gap.value > 0 else (other, one)
            beaten.setdefault(worse.label, better.label)
        elif rule.equal(gap):
            same.add((one.label, other.label))
    names = ((one.label, other.label) for one, other in pairs)
    return Decisions(beaten, tuple(pair for pair in names if pair not in same and not {*pair} & {*beaten}))


def paired_interval(one: Cell, other: Cell, metric: str, rule: Sequential, pairs: int) -> Interval:
    """The mean difference over shared seeds with an interval at its part of the error, one of `pairs`."""
    mine, theirs = values_of(one, metric), values_of(other, metric)
    differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if not differences:
        return Interval(float("nan"), -inf, inf)
    return anytime_interval(differences, rule.error / pairs)


def rule_of(node: Mapping[str, Any]) -> Sequential | None:
    """The rule of a sweep.yaml; None for a sweep with fixed seeds, and if the file is damaged."""
    found = node.get("sequential")
    known = {field.name for field in fields(Sequential)}
    if not isinstance(found, Mapping) or not {*found} <= known or not isinstance(found.get("max_seeds"), int):
        return None
    return Sequential(**found)
