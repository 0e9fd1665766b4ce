"""Figures and tables for a paper: files of each format, unrounded CSV, LaTeX that compiles."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from markupsafe import Markup

from postrain.errors import ConfigError
from postrain.report import write_report
from postrain.report.__main__ import parse_formats
from postrain.report.blocks import Cell, Table, estimate
from postrain.report.export import escape, to_csv, to_tex

TABLE = Table(
    ("metric", "a_b", "note"),
    [
        ("gold & reward", [estimate(0.123456, 0.1, 0.2, 64, best=True), Cell("50 %")]),
        ("loss", [Cell("–"), Cell(Markup("<b>x</b>_1"))]),
    ],
    words=("note",),
)


def test_csv_has_unrounded_values_with_interval_and_n() -> None:
    assert list(csv.reader(io.StringIO(to_csv(TABLE)))) == [
        ["metric", "a_b", "a_b low", "a_b high", "a_b n", "note"],
        ["gold & reward", "0.123456", "0.1", "0.2", "64", "50 %"],
        ["loss", "", "", "", "", "x_1"],
    ]


def test_tex_is_an_escaped_booktabs_table() -> None:
    assert to_tex(TABLE).splitlines() == [
        "% \\usepackage{booktabs}",
        "\\begin{tabular}{lrl}",
        "\\toprule",
        r"metric & a\_b & note \\",
        "\\midrule",
        r"gold \& reward & \textbf{0.12} {\footnotesize [0.10 \dots{} 0.20, n=64]} & 50 \% \\",
        r"loss & -- & x\_1 \\",
        "\\bottomrule",
        "\\end{tabular}",
    ]


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b^c~d", r"a\_b\textasciicircum{}c\textasciitilde{}d"),
        (r"\input{x} 5 % #1 $2$", r"\textbackslash{}input\{x\} 5 \% \#1 \$2\$"),
        ("é 漢\n|", r"é ? \textbar{}"),
    ],
)
def test_escape_leaves_no_command_of_latex(text: str, escaped: str) -> None:
    assert escape(text) == escaped


def test_report_writes_figures_and_table_in_every_format(
    run_maker: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_maker(tmp_path, few=True)
    write_report(path, tmp_path / "out", parse_formats("pdf, SVG,csv,tex"))
    names = {file.name for file in (tmp_path / "out").iterdir()}
    figures = {
        f"{stem}.{suffix}" for stem in ("training_curves", "response_lengths") for suffix in ("pdf", "png", "svg")
    }
    assert names >= figures | {"table.csv", "table.tex"}
    assert (tmp_path / "out/training_curves.pdf").read_bytes().startswith(b"%PDF")
    rows = list(csv.DictReader((tmp_path / "out/table.csv").open()))
    assert rows[0]["held-out metric"] == "eval reward"
    assert float(rows[0]["change"]) == float(rows[0]["after"]) - float(rows[0]["before"])


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ConfigError, match=r"--format: expected some of pdf,svg,csv,tex, got 'png'"):
        parse_formats("pdf,png")
