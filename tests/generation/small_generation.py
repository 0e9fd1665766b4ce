"""Generations in this process, composed as the command line composes them."""

from __future__ import annotations

from pathlib import Path

from postrain.jobs.session import GENERATE, execute
from postrain.runs.folder import RunFolder
from tests import training_runs

SMALL = ("prompt_count=10", "samples=3", "chunk=4")
SMALL += ("data.eval_rows=8", "data.source.count=16", "rollout.max_new_tokens=12")


def composed(*overrides: str) -> dict:
    """The plain config of a command line."""
    return training_runs.composed(overrides, "generate")


def run_generation(output: Path, *overrides: str) -> RunFolder:
    """Runs a small generation; returns its folder."""
    before = set(output.glob("*/*/*"))
    execute(GENERATE, composed(*SMALL, *overrides, f"paths.output={output}"), overrides=list(overrides), group=None)
    (made,) = set(output.glob("*/*/*")) - before
    return RunFolder(made)


def resume_generation(folder: RunFolder, *overrides: str) -> None:
    """Resumes the generation in a folder."""
    config = composed(f"resume={folder.path}", *(f"++{override}" for override in overrides))
    execute(GENERATE, config, overrides=list(overrides), group=None)
