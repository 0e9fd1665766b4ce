"""Any folder → report.html, one self-contained page, and its pictures. Imports neither torch nor lightning."""

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

# What lies in a folder of each kind; the first that fits.
FILES: Mapping[str, tuple[str, ...]] = {
    "sweep": ("sweep.yaml",),
    "pipeline": ("pipeline.yaml",),
    "run": ("metrics.jsonl", "samples.jsonl"),
    "evaluation": ("evaluation_stats.json",),
    "generation": ("completions.jsonl", "summary.json"),
}
WRITERS: Mapping[str, Callable[[Path, Path | None], Path]] = {
    "sweep": write_study,
    "run": write_run,
    "evaluation": write_evaluation,
    "pipeline": write_pipeline,
    "generation": write_generation,
}
COMPARED: Mapping[str, Callable[[Sequence[Path], Path], Path]] = {
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
    raise ConfigError(f"{path} is no folder of a run, sweep, pipeline, evaluation or generation (it holds: {there})")


def write_report(path: Path, output: Path | None = None) -> Path:
    """Writes report.html and its pictures into the folder itself or into `output`; returns the page.

    Raises ConfigError for a folder that is none of ours, or one that cannot be written.
    """
    writer = WRITERS[kind_of(path)]
    check_contained(path)
    return writer(path, output)


def write_comparison(paths: Sequence[Path], output: Path | None = None) -> Path:
    """Writes one page on several runs, or on several evaluations; returns it.

    It goes into `output`, otherwise into a folder of runs/comparison that is the same for the same folders.
    """
    kinds = {path: kind_of(path) for path in paths}
    kind = kinds[paths[0]]
    other = next((path for path in paths if kinds[path] != kind or kind not in COMPARED), None)
    if other is not None:
        raise ConfigError(
            f"{other} is a {kinds[other]}; what can be compared are runs with runs and evaluations with evaluations"
        )
    digest = hashlib.sha256("\n".join(str(path.resolve()) for path in paths).encode()).hexdigest()[:8]
    return COMPARED[kind](paths, output or COMPARISONS / digest)
