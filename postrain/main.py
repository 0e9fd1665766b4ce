"""From the command line to a run: what `train.py` calls. The one place that talks to Hydra.

Mistakes of a user end here as one line each on stderr and exit code 2; `debug=true` shows where they came from.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from postrain.cli import asked, listing, prepare
from postrain.types import ConfigError


def start(argv: Sequence[str], conf: Path) -> int:
    """Runs one command line; returns the exit code."""
    try:
        shown = asked(argv[1:], conf)
        arguments = prepare(argv[1:], conf) if shown is None else []
    except ConfigError as error:
        return complain(error)
    if shown is not None:
        print(shown)
        return 0
    sys.argv = [argv[0], *arguments]

    def job(config: DictConfig) -> float | None:
        return run_job(config, conf)

    hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name="config")(job)()
    return 0


def run_job(config: DictConfig, conf: Path) -> float | None:
    """One job of a command line: a run, or one of a multirun."""
    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    if "method" not in plain and not plain["resume"]:
        print("Choose a method, as in: python train.py method=ppo\n\n" + listing(conf, "method"))
        sys.exit(2)
    plain["name"] = plain["name"] or HydraConfig.get().runtime.choices["method"]
    multirun = HydraConfig.get().mode is RunMode.MULTIRUN
    # Imported here so that --help and mistakes on the command line answer at once (start-up time).
    from postrain.run import execute  # noqa: PLC0415

    try:
        return execute(
            plain,
            # cli.py forces every key past Hydra; people did not write the ++.
            overrides=[word.removeprefix("++") for word in HydraConfig.get().overrides.task],
            group=Path(HydraConfig.get().sweep.dir).name if multirun else None,
        )
    except ConfigError as error:
        if plain["debug"]:
            raise
        code = complain(error)
        if multirun:
            # Hydra goes on with the other jobs and ends with a code that says one failed.
            raise
        sys.exit(code)


def complain(error: ConfigError) -> int:
    """Prints a user's mistake; returns the exit code for it."""
    print(f"error: {error}", file=sys.stderr)
    return 2
