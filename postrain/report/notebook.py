"""A run in a notebook: its verdict and learning curves as HTML with inline SVG, for `_repr_html_`.

Colours are those of the light page, set on the element itself: the style of the notebook does not reach them.
"""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from postrain.config.masking import hidden
from postrain.formatting import short
from postrain.report.charts import curves, lines_of
from postrain.report.folders import read_run
from postrain.report.page import PAGE
from postrain.report.palette import VARIABLES
from postrain.report.panels import arrange
from postrain.report.pictures import Picture
from postrain.report.verdict import verdict

MOST_PANELS = 6
FRAME = Markup(
    '<div class="postrain-run" style="{};background:#fff;color:#1d2129;max-width:70rem;padding:.8rem 1rem;'
    'border:1px solid #e4e4de;border-radius:.6rem;font:14px/1.45 system-ui,sans-serif"><b>{} on {}</b> ({}){}'
    '<div style="display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:.8rem">{}</div>'
    '<div style="color:#666d78;font-size:12px">{}</div></div>'
)
PARAGRAPH = Markup('<p style="margin:.3rem 0">{}</p>')
FIGURE = Markup(
    '<figure style="margin:0"><figcaption><b>{}</b></figcaption>{}<div style="font-size:12px">{}</div></figure>'
)
SWATCH = Markup(
    '<span style="white-space:nowrap"><i style="display:inline-block;width:2.2em;height:.2em;vertical-align:.25em;'
    'margin-right:.35em;background:{}"></i>{}</span> '
)


def run_html(path: Path) -> str:
    """The verdict and the first panels of the run in a folder."""
    run = read_run(path)
    panels, _ = arrange(run.metrics)
    colors: dict[str, int] = {}
    figures = Markup()
    for panel in [panel for panel in panels if panel.primary][:MOST_PANELS]:
        lines = lines_of(panel, run.metrics, colors)
        drawn = Picture(panel.title, "", curves(lines, run.updates, panel.label)).svg
        legend = Markup().join(SWATCH.format(line.entry.background, short(line.name)) for line in lines)
        figures += FIGURE.format(panel.title, drawn, legend)
    style = ";".join(f"{name.removeprefix('var(').removesuffix(')')}:{shade}" for shade, name in VARIABLES.items())
    sentences = Markup().join(PARAGRAPH.format(line) for line in verdict(run).lines)
    return hidden(str(FRAME.format(style, run.method, run.model, run.state, sentences, figures, run.path / PAGE)))
