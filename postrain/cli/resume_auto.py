"""`resume=auto`: the run that an earlier attempt of the same command began, for jobs that are started again.

torchrun --max-restarts, a requeued job of Slurm and a cron line repeat their command as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from postrain.config.schema import Paths
from postrain.errors import ConfigError

AUTO = "resume=auto"


def with_newest_run(words: Sequence[str]) -> list[str]:
    """The command line with resume=FOLDER for resume=auto, or without it if there is nothing to resume.

    FOLDER is the newest run of `name=` that has a checkpoint. Raises ConfigError without a name, and for sweeps and
    pipelines.
    """
    if AUTO not in words:
        return list(words)
    given = {key: value for key, _, value in (word.partition("=") for word in words)}
    if not given.get("name"):
        raise ConfigError(f"{AUTO}: finds runs by their name, and this one has none; add name=NAME")
    if several := [key for key in ("-m", "--multirun", "sweep", "pipeline") if key in given]:
        raise ConfigError(f"{AUTO}: is for single runs, not with {several[0]}; give the folder, as resume=FOLDER")
    runs = Path(given.get("paths.output", Paths.output)) / given["name"]
    # Names of run folders begin with their time.
    folders = sorted(runs.glob("*/*"), key=lambda folder: folder.name)
    found = [folder for folder in folders if any((folder / "checkpoints").glob("*.ckpt"))]
    rest = [word for word in words if word != AUTO]
    return [f"resume={found[-1]}", *rest] if found else rest
