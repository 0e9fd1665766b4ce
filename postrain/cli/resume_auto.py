"""`resume=auto`: the run that an earlier attempt of the same command began, for jobs that are started again.

torchrun --max-restarts, a requeued job of Slurm and a cron line repeat their command as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from postrain.config.override_text import format_override
from postrain.config.schema import Paths
from postrain.errors import ConfigError
from postrain.runs.folder import RunFolder, file_name
from postrain.runs.status import checkpoints

AUTO = "resume=auto"


def with_newest_run(words: Sequence[str]) -> list[str]:
    """The command line with resume=FOLDER for resume=auto, or without it if there is nothing to resume.

    FOLDER is the newest run of `name=` that has a checkpoint. Raises ConfigError without a name, and for sweeps and
    pipelines.
    """
    automatic = {word for word in words if "resume" in word and _is_auto(_parsed(word))}
    if not automatic:
        return list(words)
    values = {override.key_or_group: override for word in words if (override := _parsed(word))}
    name = _value(values.get("name"))
    if name in (None, ""):
        raise ConfigError(f"{AUTO}: finds runs by their name, and this one has none; add name=NAME")
    if several := [key for key in ("-m", "--multirun", "sweep", "pipeline") if key in {*words, *values}]:
        raise ConfigError(f"{AUTO}: is for single runs, not with {several[0]}; give the folder, as resume=FOLDER")
    found = newest_run(Path(_value(values.get("paths.output")) or Paths.output), str(name))
    rest = [word for word in words if word not in automatic]
    return [format_override("resume", str(found)), *rest] if found else rest


def newest_run(output: Path, name: str) -> Path | None:
    """The newest run below `output` with this name that has a checkpoint."""
    from postrain.runs.resume import saved_config  # noqa: PLC0415 - start-up time of a command without resume=auto

    # Names of run folders begin with their time. Several names may have the same folder (runs/folder.py: file_name).
    folders = sorted((output / file_name(name)).glob("*/*"), key=lambda folder: folder.name, reverse=True)
    saved = (folder for folder in folders if checkpoints(folder))
    return next((folder for folder in saved if saved_config(RunFolder(folder)).get("name") == name), None)


def _parsed(word: str) -> Override | None:
    """A word as Hydra reads it; None for a flag, and for a mistake, which is reported with all others."""
    try:
        (override,) = OverridesParser.create().parse_overrides([word])
    except (HydraException, ValueError):
        return None
    return None if override.is_sweep_override() else override


def _is_auto(override: Override | None) -> bool:
    return override is not None and override.key_or_group == "resume" and override.value() == "auto"


def _value(override: Override | None) -> Any:
    """The value of an override, with environment variables; None without one."""
    try:
        return None if override is None else OmegaConf.create({"value": override.value()})["value"]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{AUTO}: {override and override.input_line}: {reason}; give the value itself") from None
