"""Any folder → report.html, one self-contained page, and its figures. Imports neither torch nor lightning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from postrain.errors import ConfigError
from postrain.report.comparison_page import write_comparison_of_runs
from postrain.report.evaluation_page import write_comparison_of_evaluations, write_evaluation
from postrain.report.generation_page import write_generation
from postrain.report.pipeline_page import write_pipeline
from postrain.report.run_page import write_run
from postrain.report.study_page import write_study
from postrain.runs.folder import check_contained

__all__ = ["write_comparison", "write_report"]

# Files that identify a folder of each kind; the first match wins.
FILES: Mapping[str, tuple[str, ...]] = {
    "sweep": ("sweep.yaml",),
    "pipeline": ("pipeline.yaml",),
    "run": ("metrics.jsonl", "samples.jsonl"),
    "evaluation": ("evaluation_stats.json",),
    "generation": ("completions.jsonl", "summary.json"),
}
WRITERS: Mapping[str, Callable[[Path, Path | None, Sequence[str]], Path]] = {
    "sweep": write_study,
    "run": write_run,
    "evaluation": write_evaluation,
    "pipeline": write_pipeline,
    "generation": write_generation,
}
COMPARED: Mapping[str, Callable[[Sequence[Path], Path, Sequence[str]], Path]] = {
    "run": write_comparison_of_runs,
    "evaluation": write_comparison_of_evaluations,
}
COMPARISONS = Path("runs", "comparison")


def kind_of(path: Path) -> str:
    """run, sweep, pipeline, evaluation or generation. Raises ConfigError for a folder that is none of them."""
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}; give a run folder, such as runs/ppo/nano/...")
    for kind, files in FILES.items():
        if any((path / name).is_file() for name in files):
            return kind
    if any((path / name).is_file() for name in ("config.yaml", "status.json", "manifest.json")):
        return "run"
    there = ", ".join(sorted(item.name for item in path.iterdir())[:8]) or "nothing"
    raise ConfigError(
        f"{path} is not the folder of a run, sweep, pipeline, evaluation or generation (it holds: {there})"
    )


def write_report(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html and its figures into the folder itself or into `output`; returns the page.

    `formats` are further ones of the figures (pdf, svg) and of the page's main table (csv, tex). Raises ConfigError for
    a folder that postrain did not write, or one that cannot be written.
    """
    writer = WRITERS[kind_of(path)]
    check_contained(path)
    return writer(path, output, formats)


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
