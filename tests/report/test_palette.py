"""Colours of figures are distinct with normal vision, protanopia and deuteranopia, and each role has one colour."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

import postrain.report
from postrain.report.palette import DASHES, REFERENCE, SERIES, Style, styles, swatch

MIN_DISTANCE = 20.0
"""CIE76 distance in CIE Lab; 2.3 is just noticeable, and curves are thin lines."""

Rows = tuple[tuple[float, float, float], ...]
# Machado, Oliveira and Fernandes (2009), "A physiologically-based model for simulation of color vision deficiency",
# severity 1.0, on linear RGB.
VISION: dict[str, Rows] = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopia": (
        (0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881),
    ),
}  # fmt: skip
XYZ: Rows = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
CSS = (Path(postrain.report.__file__).parent / "style.css").read_text()


def times(rows: Rows, vector: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(sum(a * b for a, b in zip(row, vector, strict=True)) for row in rows)


def linear(color: str) -> tuple[float, ...]:
    parts = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return tuple(part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)


def lab(color: str, vision: str) -> tuple[float, float, float]:
    perceived = tuple(min(1.0, max(0.0, part)) for part in times(VISION[vision], linear(color)))
    white = times(XYZ, (1.0, 1.0, 1.0))
    ratios = (a / b for a, b in zip(times(XYZ, perceived), white, strict=True))
    x, y, z = (r ** (1 / 3) if r > 216 / 24389 else (24389 / 27 * r + 16) / 116 for r in ratios)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def contrast(one: str, other: str) -> float:
    low, high = sorted(times(XYZ, linear(color))[1] + 0.05 for color in (one, other))
    return high / low


def css_palettes() -> list[dict[str, str]]:
    """The light and the dark palette of the style sheet."""
    return [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block)) for block in re.findall(r":root \{(.*?)\}", CSS, re.S)
    ]


def series_of(palette: dict[str, str]) -> list[str]:
    return [palette[f"series-{index}"] for index in range(len(SERIES))]


def test_light_palette_of_the_page_is_that_of_image_files() -> None:
    light, _ = css_palettes()
    assert (tuple(series_of(light)), light["reference"]) == (SERIES, REFERENCE)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colors_differ_for_every_kind_of_vision(theme: int, vision: str) -> None:
    palette = css_palettes()[theme]
    colors = {color: lab(color, vision) for color in (*series_of(palette), palette["reference"])}
    assert len(colors) == len(SERIES) + 1
    for one, other in combinations(colors, 2):
        gap = sum((a - b) ** 2 for a, b in zip(colors[one], colors[other], strict=True)) ** 0.5
        assert gap >= MIN_DISTANCE, f"{one} and {other}: {gap:.1f}"


def test_lines_contrast_with_the_card_of_both_themes() -> None:
    # WCAG 2.1, 1.4.11: graphical objects need 3 to 1.
    for palette in css_palettes():
        assert min(contrast(color, palette["card"]) for color in series_of(palette)) >= 2.95


def test_a_role_has_one_color_in_every_figure() -> None:
    assert styles(["gold/total", "gold/mood"])[0].series == 1
    assert [style.series for style in styles(["reward/chosen", "eval/reward/chosen", "reward/rejected"])] == [2, 2, 3]
    assert [style.series for style in styles(["eval/logp/rejected", "logp/chosen"])] == [3, 2]
    assert [style.series for style in styles(["reward/desirable", "reward/undesirable"])] == [2, 3]
    assert [style.series for style in styles(["accuracy", "eval/accuracy"])] == [0, 0]


def test_a_component_keeps_its_color_in_later_figures_of_a_page() -> None:
    known: dict[str, int] = {}
    first = dict(zip("ab", styles(["reward/mood", "reward/format"], known), strict=True))
    later = styles(["gold/total", "gold/format", "gold/mood"], known)
    assert [style.series for style in later[1:]] == [first["b"].series, first["a"].series]


def test_lines_of_a_figure_differ_in_color_or_dashes() -> None:
    names = [f"reward/part{index}" for index in range(len(SERIES))]
    found = styles(names)
    assert len({style.series for style in found}) == len({style.dash for style in found}) == len(DASHES) == len(SERIES)
    assert len(set(DASHES)) == len(DASHES)
    assert styles(["accuracy", "eval/accuracy"]) == [Style(0, 0), Style(0, 1)]


def test_swatch_of_a_dashed_line_repeats_its_pattern() -> None:
    assert swatch("red", 0) == "red"
    # DASHES[2] is (1, 1.2): drawn twice as large.
    assert swatch("red", 2) == "repeating-linear-gradient(90deg, red 0px 2px, transparent 2px 4.4px)"
