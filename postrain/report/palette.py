"""Colours and line styles of all figures, and the role that each metric has in them.

The eight series colours and the grey of the reference differ by at least 20 units of CIE Lab for normal vision,
protanopia and deuteranopia, in the light palette (here) and in the dark one (style.css); tests/report/test_palette.py
simulates both. A role has one colour in every figure. Lines of one figure differ in their dashes too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

# Drawn colour → CSS variable. None may be a colour that matplotlib uses by default.
INK, MUTED, GRID = "#101112", "#737475", "#d9dadb"
SERIES = ("#0088fa", "#bc7d00", "#2a9757", "#7d306f", "#9b0600", "#008cc1", "#00167b", "#39070b")
REFERENCE = "#8f959d"
"""The reference policy, and the model before training."""
UNTRAINED = -1
"""The series number of the reference."""
POLICY = SERIES[0]
"""The policy, and the model after training."""
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    REFERENCE: "var(--reference)",
    **{color: f"var(--series-{index})" for index, color in enumerate(SERIES)},
}

GOLD, FINISHED, CUT = SERIES[1], SERIES[5], SERIES[4]
"""Gold scores; finished completions, and those cut at the limit."""

DASHES: tuple[tuple[float, ...], ...] = (
    (), (4, 1.6), (1, 1.2), (5, 1.5, 1, 1.5), (8, 2), (2.2, 1.2), (5, 1.5, 1, 1.5, 1, 1.5), (1.5, 3),
)  # fmt: skip
"""Dash and gap lengths in line widths; the first is solid."""

ROLES: Mapping[str, int] = {
    "gold/total": 1, "*greedy/gold/total": 1,
    "*chosen": 2, "*desirable": 2,
    "*rejected": 3, "*undesirable": 3,
    "*/total": 0,
}  # fmt: skip
"""The series of a role: the policy and its (proxy) reward 0, gold 1, chosen 2, rejected 3. The first match wins."""
FIRST_FREE = 4
"""Series from here on are for metrics without a role, such as the parts of a reward."""


class Style(NamedTuple):
    """The series number and dash pattern of a line."""

    series: int
    dash: int


def styles(names: Sequence[str], known: dict[str, int] | None = None) -> list[Style]:
    """The style of each metric in a figure.

    A metric and the same one on held-out data share a colour. `known` holds the colours of earlier figures of a page:
    the same part of two sums, as `reward/mood` and `gold/mood`, gets the same one.
    """
    known = {} if known is None else known
    taken: dict[int, str] = {}
    found = []
    alone = len({name.removeprefix("eval/") for name in names}) == 1
    for index, name in enumerate(names):
        base = name.removeprefix("eval/")
        role = next((series for pattern, series in ROLES.items() if _fits(base, pattern)), None)
        if role is None and alone:
            role = 0
        series = _part(base, taken, known) if role is None else role
        taken.setdefault(series, base)
        found.append(Style(series, index % len(DASHES)))
    return found


def _fits(base: str, pattern: str) -> bool:
    # "*desirable" would match "undesirable" as well.
    return fnmatchcase(base, pattern) and not (pattern == "*desirable" and base.endswith("undesirable"))


def _part(base: str, taken: Mapping[int, str], known: dict[str, int]) -> int:
    """The colour of a metric without a role: as in earlier figures where it is free here, else the next one."""
    part = base.rpartition("/")[2]
    order = [*range(FIRST_FREE, len(SERIES)), *range(FIRST_FREE)]
    free = [series for series in order if taken.get(series, base) == base]
    wanted = known.get(part, order[len(known) % len(SERIES)])
    series = wanted if wanted in free or not free else free[0]
    known.setdefault(part, series)
    return series


def shade(series: int) -> str:
    """The drawn colour of a series."""
    return REFERENCE if series == UNTRAINED else SERIES[series % len(SERIES)]


def color(series: int) -> str:
    """The CSS colour of a series."""
    return VARIABLES[shade(series)]


def css(drawn: str) -> str:
    """The CSS colour of a drawn one."""
    return VARIABLES[drawn]


def swatch(background: str, dash: int) -> str:
    """The CSS background of a legend's line: a colour with a dash pattern of DASHES."""
    pattern = DASHES[dash % len(DASHES)]
    if not pattern:
        return background
    stops, at = [], 0.0
    for index, length in enumerate(pattern):
        stops.append(f"{'transparent' if index % 2 else background} {at:g}px {at + 2 * length:g}px")
        at += 2 * length
    return f"repeating-linear-gradient(90deg, {', '.join(stops)})"
