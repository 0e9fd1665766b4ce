"""Any folder → report.html, one self-contained page, and its figures. Imports neither torch nor lightning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from postrain.errors import ConfigError
from postrain.report.comparison_page import write_comparison_of_runs
from postrain.report.evaluation_page import write_comparison_of_evaluations, write_evaluation
from postrain.report.generation_page import write_generation
from postrain.report.index_page import any_running, write_index
from postrain.report.kinds import INDEX, kind_of
from postrain.report.pipeline_page import write_pipeline
from postrain.report.run_page import write_run
from postrain.report.sweep_page import write_sweep
from postrain.runs.folder import check_contained
from postrain.runs.status import Status

__all__ = ["is_running", "write_comparison", "write_report"]

WRITERS: Mapping[str, Callable[[Path, Path | None, Sequence[str]], Path]] = {
    "sweep": write_sweep,
    "run": write_run,
    "evaluation": write_evaluation,
    "pipeline": write_pipeline,
    "generation": write_generation,
    INDEX: write_index,
}
COMPARED: Mapping[str, Callable[[Sequence[Path], Path, Sequence[str]], Path]] = {
    "run": write_comparison_of_runs,
    "evaluation": write_comparison_of_evaluations,
}
COMPARISONS = Path("runs", "comparison")


def write_report(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html and its figures into the folder itself or into `output`; returns the page.

    A folder of runs gets an index of them. `formats` are further ones of the figures (pdf, svg) and of the page's main
    table (csv, tex). Raises ConfigError for a folder that postrain did not write, or one that cannot be written.
    """
    kind = kind_of(path)
    if kind != INDEX:
        check_contained(path)
    return WRITERS[kind](path, output, formats)


def is_running(path: Path) -> bool:
    """Whether the run, sweep, ... in a folder is running, or any below it."""
    if kind_of(path) == INDEX:
        return any_running(path)
    return Status(path / "status.json").current().get("status") == "running"


def write_comparison(paths: Sequence[Path], output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes one page that compares several runs, or several evaluations; returns it.

    It goes into `output`, by default into a folder of runs/comparison that depends on the paths alone.
    """
    kinds = {path: kind_of(path) for path in paths}
    kind = kinds[paths[0]]
    other = next((path for path in paths if kinds[path] != kind or kind not in COMPARED), None)
    if other is not None:
        raise ConfigError(f"{other} is a {kinds[other]}; compare runs with runs, or evaluations with evaluations")
    digest = hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode()).hexdigest()[:8]
    return COMPARED[kind](paths, output or COMPARISONS / digest, formats)
