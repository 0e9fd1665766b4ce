"""Overrides that the user must repeat to resume a folder, besides resume=FOLDER; the printed resume command has them.

config/trust.py decides which values these are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from postrain.config.override_text import format_override
from postrain.config.trust import join_flags, restricted_values
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError
from postrain.generation.config import GenerateConfig
from postrain.jobs.pipeline import FILE, Pipeline
from postrain.jobs.plan import restricted_stage_values
from postrain.report.sweep_results import FILE as SWEEP
from postrain.report.sweep_results import JOBS
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config
from postrain.training.config import TrainConfig


def confirmations(folder: Path) -> list[str]:
    """The overrides and flags; empty if the folder cannot be read, which resuming reports."""
    try:
        return list(dict.fromkeys(_confirmations(folder)))
    except (ConfigError, OSError, ValueError, TypeError, KeyError):
        return []


def _confirmations(folder: Path) -> Iterator[str]:
    if (folder / SWEEP).is_file():
        study: Any = load_yaml(folder / SWEEP)
        yield from join_flags(study["flags"])
        for job in json.loads((folder / JOBS).read_bytes()):
            yield from job["confirm"]
    elif (folder / FILE).is_file():
        for stage, one in restricted_stage_values(Pipeline.load(folder).jobs, folder):
            yield format_override(f"stage.{stage}.{one.key}", one.value)
    else:
        config = saved_config(RunFolder(folder))
        for one in restricted_values(config, GenerateConfig if "selection" in config else TrainConfig):
            yield format_override(one.key, one.value)
