"""The over-optimisation law: gold score R against the distance d = √KL to the reference policy (Gao et al. 2023,
"Scaling Laws for Reward Model Overoptimization", arXiv 2210.10760, equations 1 and 2).

    best of n:  R(d) = d · (α − β · d)        RL:  R(d) = d · (α − β · log d)

R is measured from the reference policy's score. Both are linear in α and β: least squares through the origin fits them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from postrain.errors import ConfigError
from postrain.jsonl import atomic_write_text
from postrain.report.overoptimization import Point, of_run, of_samples
from postrain.runs.folder import writing


@dataclass(frozen=True)
class Fit:
    """The law fitted to the points of a curve."""

    alpha: float
    beta: float
    r2: float
    """Share of the gold score's variance that the law explains; negative if its mean explains more."""


def fit(points: Sequence[Point], decline: Callable[[float], float]) -> Fit:
    """Least squares of gold − gold of the first point = d · (α − β · decline(d)) over the points with d > 0.

    Raises ConfigError for fewer than three such points, or equal ones.
    """
    start = points[0].gold
    known = [(one.distance, one.gold - start) for one in points if one.distance > 0]
    rows = [(d, -d * decline(d), gain) for d, gain in known]
    xx, xy, yy = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    determinant = xx * yy - xy * xy
    if len(rows) < 3 or determinant <= 1e-12 * xx * yy:
        raise ConfigError(f"the law needs three points with different distances to the reference; got {len(rows)}")
    x, y = (sum(row[i] * row[2] for row in rows) for i in (0, 1))
    alpha, beta = (yy * x - xy * y) / determinant, (xx * y - xy * x) / determinant
    mean = fmean(gain for _, gain in known)
    spread = sum((gain - mean) ** 2 for _, gain in known)
    errors = sum((gain - d * (alpha - beta * decline(d))) ** 2 for d, gain in known)
    return Fit(alpha, beta, 1 - errors / spread if spread else 0.0)


def overoptimization_law(*, folder: str, run: str, samples: str) -> None:
    """Fits the law to the evaluations of the RL run in the folder `run`, and to best-of-n of the generation in
    `samples`; writes result.json into `folder`.

    Values: `rl_alpha`, `rl_beta`, `rl_r2`, and the same with `bon_`; `rl_peak` and `rl_end`, the largest and the last
    gold score; `bon_kl`, the KL of the largest n, and `rl_kl`, that of RL at the same proxy reward [nats/completion],
    left out if RL does not reach it.
    """
    rl, best = of_run("RL", Path(run)).points, of_samples("best of n", Path(samples)).points
    laws = {"rl": fit(rl, math.log), "bon": fit(best, lambda d: d)}
    values = {f"{name}_{key}": getattr(law, key) for name, law in laws.items() for key in ("alpha", "beta", "r2")}
    values |= {"rl_peak": max(one.gold for one in rl), "rl_end": rl[-1].gold, "bon_kl": best[-1].kl}
    if (kl := kl_at(rl, best[-1].proxy)) is not None:
        values["rl_kl"] = kl
    output = Path(folder, "result.json")
    with writing(output):
        atomic_write_text(output, json.dumps({"values": values}, indent=2) + "\n")


def kl_at(points: Sequence[Point], proxy: float) -> float | None:
    """The KL at which a curve first reaches a proxy reward, by linear interpolation; None if it never does."""
    for one, other in pairwise(points):
        if one.proxy < proxy <= other.proxy:
            share = (proxy - one.proxy) / (other.proxy - one.proxy)
            return one.kl + share * (other.kl - one.kl)
    return None
