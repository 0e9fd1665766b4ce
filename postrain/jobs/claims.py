"""Claims of a pipeline: a sentence, and an inequality over metrics of its stages that is decided over seeds.

    expect:
      - claim: RL raises the accuracy by at least 0.1
        holds: grpo/eval/accuracy/greedy > grpo.start/eval/accuracy/greedy + 0.1
        published: 0.3                                                  the gap in the paper, shown beside the run's
        otherwise: the model is too small to sample a right answer    shown if the claim is not here

`STAGE/METRIC` is a number of a stage, `STAGE.start/METRIC` that before training. Sums, differences and multiples are
allowed on both sides, `A > B > C` is an order, and `A = B within 0.02` is an equivalence.

For each seed the gap is the side that is claimed to be larger minus the other one; of an equivalence, left minus right.
Student's t interval of the gaps decides: a claim is `reproduced` if the whole interval is on the claimed side, `not
here` if it is on the other side, else `undecided`.

An order is reproduced if all its neighbours are, and not here if one of its k neighbours is, with an interval of level
1 − 0.05/k: without an effect, a claim is decided in at most 5 % of the cases.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite, sqrt
from statistics import stdev
from typing import Any, Literal

from postrain.config.check import problems_of
from postrain.config.schema import Section
from postrain.errors import ConfigError
from postrain.evaluation.estimate import Interval, gap_interval, mean_interval, student
from postrain.metrics import bounds
from postrain.suggestions import suggestion

Decision = Literal["reproduced", "not here", "undecided"]
Values = Mapping[int, Mapping[str, float]]
"""By seed, then by quantity."""

QUANTITY = re.compile(r"[A-Za-z]\w*(\.\w+){0,2}/\S+")
RELATION = re.compile(r"\s([<>=])\s")
ERROR = 0.05
EQUAL = "the gap is the same in all seeds, so the spread between seeds is unknown"
MOST_SEEDS = 100
"""A larger number of seeds is not suggested."""
FORM = "expected an inequality such as test.rl/accuracy/greedy > test.base/accuracy/greedy + 0.05"


@dataclass(frozen=True)
class Comparison:
    """Two neighbours: a linear combination of quantities that is claimed to be positive, or near 0."""

    text: str
    """As in `A > B`."""
    weights: Mapping[str, float]
    """Left side minus right side, the larger one first."""
    constant: float
    tolerance: float | None = None
    """Of an equivalence."""

    def gap(self, values: Mapping[str, float]) -> float:
        """The value of the combination."""
        return self.constant + sum(weight * values[name] for name, weight in self.weights.items())

    def decide(self, gap: Interval) -> Decision:
        """The decision by an interval of the gap."""
        margin = self.tolerance
        if margin is None:
            return "reproduced" if gap.low > 0 else "not here" if gap.high < 0 else "undecided"
        if -margin < gap.low and gap.high < margin:
            return "reproduced"
        return "not here" if gap.low > margin or gap.high < -margin else "undecided"

    def distance(self, value: float) -> float:
        """The distance of a gap from the nearest value at which the decision changes."""
        return abs(value) if self.tolerance is None else abs(abs(value) - self.tolerance)


@dataclass(frozen=True, kw_only=True)
class Claim(Section):
    """A claim of a pipeline's `expect`."""

    claim: str
    """A sentence."""
    holds: str
    """The inequality."""
    published: float | None = None
    """The gap in the paper."""
    otherwise: str = ""
    """What explains a claim that is "not here"."""

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """The neighbours of the inequality. Raises ConfigError if it cannot be read."""
        return tuple(_comparisons(self.holds))

    @property
    def quantities(self) -> tuple[str, ...]:
        """The quantities, in order."""
        return tuple(dict.fromkeys(name for each in self.comparisons for name in each.weights))


def claims_of(expect: Any) -> tuple[Claim, ...]:
    """The claims of a pipeline's `expect`. Raises one ConfigError with all problems."""
    if not isinstance(expect, list) or not expect:
        raise ConfigError("pipeline.expect: expected a list of {claim: sentence, holds: inequality}")
    found: list[Claim] = []
    problems: list[str] = []
    for number, node in enumerate(expect):
        key = f"pipeline.expect[{number}]"
        if not isinstance(node, Mapping) or not {"claim", "holds"} <= set(node):
            problems.append(f"{key}: expected {{claim: sentence, holds: inequality}}")
            continue
        if wrong := [f"{key}.{problem}" for problem in problems_of(node, Claim)]:
            problems += wrong
            continue
        try:
            found.append(Claim(**node))
            _ = found[-1].comparisons
        except ConfigError as problem:
            problems.append(f"{key}.holds: {problem}")
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(found)


def _comparisons(text: str) -> Iterator[Comparison]:
    body, _, within = text.partition(" within ")
    sides = RELATION.split(body)
    tolerance = _number(within) if within else None
    if len(sides) < 3 or ("=" in sides[1::2]) != bool(within) or (within and not (tolerance or 0) > 0):
        raise ConfigError(f"{text}: {FORM}, A > B > C, or A = B within 0.02")
    for left, relation, right in zip(sides[::2], sides[1::2], sides[2::2], strict=False):
        more, less = (right, left) if relation == "<" else (left, right)
        weights: dict[str, float] = {}
        constant = 0.0
        for sign, side in ((1, more), (-1, less)):
            for factor, name in _terms(side, text):
                if name:
                    weights[name] = weights.get(name, 0.0) + sign * factor
                else:
                    constant += sign * factor
        if not weights:
            raise ConfigError(f"{text}: {left.strip()} {relation} {right.strip()} names no metric; {FORM}")
        shown = f"{left.strip()} {relation} {right.strip()}"
        yield Comparison(shown, weights, constant, tolerance if relation == "=" else None)


def _terms(side: str, text: str) -> Iterator[tuple[float, str]]:
    """The terms of a sum: a factor and a quantity, or a number and ""."""
    for sign, term in re.findall(r"(?:^|\s([+-])\s)\s*(.+?)(?=\s[+-]\s|$)", side.strip()):
        parts = re.split(r"\s\*\s", term.strip())
        numbers = [found for part in parts if (found := _number(part)) is not None]
        names = [part for part in parts if QUANTITY.fullmatch(part)]
        if len(numbers) + len(names) < len(parts) or len(names) > 1 or len(numbers) > 1:
            raise ConfigError(f"{text}: cannot read {term.strip()}; {FORM}")
        yield (-1 if sign == "-" else 1) * (numbers or [1.0])[0], (names or [""])[0]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Found:
    """The decision on a claim."""

    claim: Claim
    decision: Decision
    gaps: tuple[tuple[str, Interval], ...]
    """Each comparison, and the mean of its gap with the 95 % interval, or that of the level which the reason names."""
    reason: str

    def record(self) -> dict[str, Any]:
        """An entry of result.json."""
        gaps = [{"comparison": text, **_ends(gap)} for text, gap in self.gaps]
        known = {"claim": self.claim.claim, "holds": self.claim.holds, "published": self.claim.published}
        return {**known, "decision": self.decision, "reason": self.reason, "gaps": gaps}


def decide(claim: Claim, values: Values) -> Found:
    """The decision on a claim from the values of all seeds. It is undecided if a seed has no finite value of one of its
    quantities: the other seeds are a selection, such as those that did not diverge."""
    seeds = [seed for seed, known in values.items() if all(isfinite(known.get(q, inf)) for q in claim.quantities)]
    if len(seeds) < 2:
        return Found(claim, "undecided", (), _unmeasured(claim, values) or "fewer than two seeds have measured it")
    parts = claim.comparisons
    gaps = [[part.gap(values[seed]) for seed in seeds] for part in parts]
    intervals = [gap_interval(each, level=1 - ERROR) for each in gaps]
    corrected = [gap_interval(each, level=1 - ERROR / len(parts)) for each in gaps]
    found = [part.decide(gap) for part, gap in zip(parts, intervals, strict=True)]
    against = [part.decide(gap) == "not here" for part, gap in zip(parts, corrected, strict=True)]
    known = tuple((part.text, gap) for part, gap in zip(parts, intervals, strict=True))
    if missing := _missing(claim, values):
        return Found(claim, "undecided", known, missing)
    if any(against):
        return Found(claim, "not here", known, claim.otherwise)
    if set(found) == {"reproduced"}:
        return Found(claim, "reproduced", known, "")
    if any(gap.high == inf for gap in intervals):
        return Found(claim, "undecided", known, EQUAL)
    return _undecided(claim, gaps)


def _undecided(claim: Claim, gaps: Sequence[Sequence[float]]) -> Found:
    """A claim whose intervals allow both decisions, with the number of seeds that would decide gaps of this size.

    Neighbours with a mean gap on the other side have the interval of level 1 − 0.05/k, and the first that excludes its
    claim decides. Without one, all neighbours have to be reproduced.
    """
    level = 1 - ERROR / len(claim.comparisons)
    known, missing, against = [], [0], {}
    for part, each in zip(claim.comparisons, gaps, strict=True):
        gap = gap_interval(each, level=1 - ERROR)
        distance = part.distance(gap.value)
        if part.decide(Interval(gap.value, gap.value, gap.value)) == "not here":
            gap = gap_interval(each, level=level)
            against[part.text] = seeds_needed(distance, each, level)
        elif part.decide(gap) != "reproduced":
            missing.append(seeds_needed(distance, each))
        known.append((part.text, gap))
    named = f" of level {100 * level:.3g} % of {' and of '.join(against)}" if against and len(known) > 1 else ""
    needed = min(against.values(), default=max(missing))
    most = f"more than {MOST_SEEDS} seeds" if needed > MOST_SEEDS else f"about {needed} seeds"
    reason = f"the interval{named} allows both; {most} would decide a gap of this size"
    return Found(claim, "undecided", tuple(known), reason)


def _unmeasured(claim: Claim, values: Values) -> str:
    """The quantities that no seed has measured."""
    known = {name for each in values.values() for name, value in each.items() if isfinite(value)}
    lines = []
    for name in claim.quantities:
        if name not in known:
            stage = name.partition("/")[0]
            measured = sorted(one for one in known if one.partition("/")[0] == stage)
            lines.append(f"no job has measured {name}{suggestion(name, measured)}")
    return "; ".join(lines)


def _missing(claim: Claim, values: Values) -> str:
    """The quantities that are not finite or were not measured in some seeds, which the gaps leave out."""
    lines = []
    for name in claim.quantities:
        seeds = [str(seed) for seed, known in values.items() if not isfinite(known.get(name, inf))]
        if seeds:
            lines.append(f"{name} was not measured or is not finite in seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}")
    return "; ".join(lines)


def seeds_needed(distance: float, gaps: Sequence[float], level: float = 1 - ERROR) -> int:
    """The least number of seeds with which an interval of this spread is shorter than `distance`; MOST_SEEDS + 1 if it
    is larger."""
    spread = stdev(gaps)
    numbers = range(len(gaps), MOST_SEEDS + 1)
    return next((n for n in numbers if student(n - 1, level) * spread / sqrt(n) < distance), MOST_SEEDS + 1)


def _ends(gap: Interval) -> dict[str, float]:
    return {"value": gap.value, "low": gap.low, "high": gap.high}


def names_of(claims: Sequence[Claim], reference: Mapping[str, Any]) -> tuple[str, ...]:
    """All quantities of claims, and those with published values."""
    names = [*(name for claim in claims for name in claim.quantities), *(reference.get("values") or {})]
    return tuple(dict.fromkeys(names))


def record(claims: Sequence[Claim], values: Values, reference: Mapping[str, Any], setup: str) -> dict[str, Any]:
    """What result.json holds about the claims: each decision, and each quantity by seed beside its published value."""
    published = reference.get("values") or {}
    quantities = []
    for name in names_of(claims, reference):
        seeds = {seed: known[name] for seed, known in values.items() if name in known}
        finite = [value for value in seeds.values() if isfinite(value)]
        mean = _ends(mean_interval(finite, *bounds(name.partition("/")[2]))) if finite else {}
        quantities.append({"name": name, "seeds": seeds, "published": published.get(name), **mean})
    found = [decide(claim, values).record() for claim in claims]
    return {
        "seeds": list(values),
        "reference": {key: value for key, value in reference.items() if key != "values"},
        "setup": setup,
        "claims": found,
        "quantities": quantities,
    }
