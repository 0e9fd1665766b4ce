"""From a command line with a sweep in it to its launcher: a process a job here, or one of Hydra's launchers."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from postrain.config.check import check
from postrain.config.overrides import PROGRAMS, forced
from postrain.jobs.launchers import Launcher, Local, ThroughHydra
from postrain.jobs.pipeline_plan import extra_folder
from postrain.jobs.sweep_plan import flags
from postrain.jobs.sweep_runner import execute
from postrain.processor import usable_cores
from postrain.types import ConfigError, Count, Positive

LOCAL = "local"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """conf/hydra/launcher/local.yaml; see Local."""

    jobs: Count
    timeout: Positive | None


def sweep(
    config: DictConfig,
    swept: Sequence[str],
    conf: Path,
    root: str,
    one: Callable[[Any], float | None],
    today: Sequence[str],
) -> int:
    """Runs the sweep; `root` is the primary config's name, `one` a job in this process. Returns the exit code.

    `today` is the command line as it was given, without the words of a sweep that is resumed.
    """
    return execute(config, swept, conf, launcher(conf, root, one), root, today)


def launcher(conf: Path, root: str, one: Callable[[Any], float | None]) -> Launcher:
    """What `hydra/launcher` names."""
    chosen, resumes = HydraConfig.get(), root != "evaluate"
    if chosen.runtime.choices["hydra/launcher"] == LOCAL:
        settings = {key: chosen.launcher.get(key) for key in ("jobs", "timeout")}
        try:
            check(settings, Settings)
        except ConfigError as error:
            raise ConfigError("\n".join(f"hydra.launcher.{line}" for line in str(error).splitlines())) from None
        return Local(command=(*command(conf, root), *flags()), resumes=resumes, **settings)
    # joblib's word for it; -1 is all cores.
    at_once = chosen.launcher.get("n_jobs") or 1
    jobs = at_once if at_once > 0 else usable_cores()
    return ThroughHydra(
        task=one, forced=partial(forced, conf=conf, root=root, extra=extra_folder()), jobs=jobs, resumes=resumes
    )


def command(conf: Path, root: str) -> tuple[str, ...]:
    """What starts a job of a primary config in a process of its own."""
    program, *words = shlex.split(PROGRAMS[root])
    assert program == "python"
    return (sys.executable, *(str(conf.resolve().parent / word) if word == "train.py" else word for word in words))
