"""The kind of a folder, by the files in it, and the folders of runs, sweeps, ... below another one."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from postrain.errors import ConfigError

# Files that identify a folder of each kind; the first match wins.
FILES: Mapping[str, tuple[str, ...]] = {
    "sweep": ("sweep.yaml",),
    "pipeline": ("pipeline.yaml",),
    "run": ("metrics.jsonl", "samples.jsonl"),
    "evaluation": ("evaluation_stats.json",),
    "generation": ("completions.jsonl", "summary.json"),
}
COMMON = ("config.yaml", "status.json", "manifest.json")
"""Files of every run; a folder with nothing else is of a run that has not measured anything yet."""
INDEX = "folder"
"""The kind of a folder that holds folders of the other kinds, or nothing."""


def kind_of(path: Path) -> str:
    """run, sweep, pipeline, evaluation, generation, or folder. Raises ConfigError where there is nothing to report."""
    if not path.is_dir():
        raise ConfigError(f"there is no folder {path}; give a run folder, such as runs/ppo/nano/...")
    names = sorted(item.name for item in path.iterdir() if item.name != "report.html")
    if kind := kind_by(names):
        return kind
    if not names or next(folders(path), None):
        return INDEX
    there = ", ".join(names[:8])
    raise ConfigError(
        f"{path} is not the folder of a run, sweep, pipeline, evaluation or generation (it holds: {there})"
    )


def kind_by(names: Collection[str]) -> str | None:
    """The kind of a folder with these files; None for one that postrain did not write."""
    found = next((kind for kind, files in FILES.items() if any(name in names for name in files)), None)
    return found or ("run" if any(name in names for name in COMMON) else None)


def folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Kind and path of every run, sweep, ... below `root`, at any depth.

    Jobs of a sweep and stages of a pipeline belong to those. Comparison pages, hidden folders and links are left out.
    """
    for index, directories, files in os.walk(root):
        path, kind = Path(index), kind_by(files)
        directories[:] = [] if kind and path != root else sorted(name for name in directories if name[0] != ".")
        # A comparison holds evaluation_stats.json, and no status.
        if kind and path != root and any(name in files for name in (*COMMON, *FILES["sweep"], *FILES["run"])):
            yield kind, path
