"""What trackers show beside curves: tables of samples, and histograms. Each gets what it can show."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from torch import Tensor

from postrain.training.loggers import TrackioLogger, writer


def log_table(loggers: Sequence[Logger], name: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
    """Send a table to every logger that can show one."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.log_table(name, columns=columns, data=rows, step=step)
        elif isinstance(logger, TrackioLogger):
            trackio = importlib.import_module("trackio")  # an extra

            logger.log_metrics({name: trackio.Table(columns=columns, data=rows)}, step=step)
        elif isinstance(logger, TensorBoardLogger):
            writer(logger).add_text(name, markdown_table(columns, rows), step)
            # Lightning has closed the writer already when the last samples come after fit.
            writer(logger).flush()


def log_histograms(loggers: Sequence[Logger], values: Mapping[str, Tensor], step: int) -> None:
    """Send distributions, by name, to every logger that can show them; what is not finite is left out."""
    finite = {name: value[value.isfinite()].float().cpu().numpy() for name, value in values.items()}
    known = {name: array for name, array in finite.items() if len(array)}
    for logger in loggers if known else ():
        if isinstance(logger, TensorBoardLogger):
            for name, array in known.items():
                writer(logger).add_histogram(name, array, step)
            # As with tables.
            writer(logger).flush()
        elif isinstance(logger, WandbLogger | TrackioLogger):
            package = importlib.import_module("wandb" if isinstance(logger, WandbLogger) else "trackio")
            logger.log_metrics({name: package.Histogram(array) for name, array in known.items()}, step=step)


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table in which no text can break a row or pass for HTML."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("|", "&#124;")
    return re.sub(r"\r?\n", "<br>", escaped)
