"""Sends tables of samples and histograms to the trackers that support them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from postrain.formatting import markdown_table
from postrain.training.loggers import TrackioLogger, writer


def log_table(loggers: Sequence[Logger], name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
    """Sends a table to every logger that supports tables."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(name, columns=columns, data=rows, step=step)
        elif isinstance(logger, TrackioLogger):
            trackio = importlib.import_module("trackio")  # an extra

            logger.log_metrics({name: trackio.Table(columns=columns, data=rows)}, step=step)
        elif isinstance(logger, TensorBoardLogger):
            writer(logger).add_text(name, as_text(columns, rows), step)
            # Samples of the final evaluation arrive after Lightning has closed the writer.
            writer(logger).flush()


def log_histograms(loggers: Sequence[Logger], values: Mapping[str, Tensor], step: int) -> None:
    """Sends the finite values, by name, to every logger that supports histograms."""
    finite = {name: value[value.isfinite()].float().cpu().numpy() for name, value in values.items()}
    known = {name: array for name, array in finite.items() if len(array)}
    for logger in loggers if known else ():
        if isinstance(logger, TensorBoardLogger):
            for name, array in known.items():
                writer(logger).add_histogram(name, array, step)
            # As for tables.
            writer(logger).flush()
        elif isinstance(logger, WandbLogger | TrackioLogger):
            package = importlib.import_module("wandb" if isinstance(logger, WandbLogger) else "trackio")
            logger.log_metrics({name: package.Histogram(array) for name, array in known.items()}, step=step)


def as_text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose cells cannot be read as HTML."""
    header, *cells = [[_cell(value) for value in row] for row in (columns, *rows)]
    return markdown_table(header, cells)


def _cell(value: Any) -> str:
    """Text that cannot be read as HTML, with its line breaks."""
    text = f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return re.sub(r"\r?\n", "<br>", escaped)
