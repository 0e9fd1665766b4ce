"""From the command line to a job: what `train.py` and `python -m postrain.generate` call. It talks to Hydra.

Mistakes of a user end here as one line each on stderr and exit code 2; `debug=true` shows where they came from.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from postrain.cli import asked, listing, overview, prepare
from postrain.types import ConfigError

Run = Callable[[DictConfig, list[str], str | None], float | None]
"""Does one job: its config, its words of the command line, and the multirun it belongs to."""


def start(argv: Sequence[str], conf: Path, *, config_name: str = "config", run: Run | None = None) -> int:
    """Runs one command line, with `run` in place of training; returns the exit code."""
    try:
        shown = asked(argv[1:], conf)
        arguments = prepare(argv[1:], conf, config_name) if shown is None else []
    except ConfigError as error:
        return complain(error)
    if shown is not None:
        print(shown)
        return 0
    sys.argv = [argv[0], *arguments]
    # For --help, in the primary config's hydra.help.template.
    OmegaConf.register_new_resolver("groups", lambda: overview(argv[1:], conf, config_name), replace=True)

    def job(config: DictConfig) -> float | None:
        return run_job(config, run or train_with(conf))

    hydra.main(version_base="1.3", config_path=str(conf.resolve()), config_name=config_name)(job)()
    return 0


def run_job(config: DictConfig, run: Run) -> float | None:
    """One job of a command line, or one of a multirun."""
    chosen = HydraConfig.get()
    multirun = chosen.mode is RunMode.MULTIRUN
    # cli.py forces every key past Hydra; people did not write the ++.
    words = [word.removeprefix("++") for word in chosen.overrides.task]
    try:
        return run(config, words, Path(chosen.sweep.dir).name if multirun else None)
    except ConfigError as error:
        if config.debug:
            raise
        code = complain(error)
        if multirun:
            # Hydra goes on with the other jobs and ends with a code that says one failed.
            raise
        sys.exit(code)


def train_with(conf: Path) -> Run:
    """Training, or a pipeline where one is named."""

    def train(config: DictConfig, words: list[str], group: str | None) -> float | None:
        if config.get("pipeline") or (config.resume and (Path(config.resume) / "pipeline.yaml").is_file()):
            # Imported here so that --help and mistakes on the command line answer at once (start-up time).
            from postrain.pipeline.runner import execute as pipeline  # noqa: PLC0415

            return pipeline(config, words, conf)
        plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        if "method" not in plain and not plain["resume"]:
            print("Choose a method, as in: python train.py method=ppo\n\n" + listing(conf, "method"))
            sys.exit(2)
        plain["name"] = plain["name"] or HydraConfig.get().runtime.choices["method"]
        from postrain.run import execute  # noqa: PLC0415 - as above

        return execute(plain, overrides=words, group=group)

    return train


def complain(error: ConfigError) -> int:
    """Prints a user's mistake; returns the exit code for it."""
    print(f"error: {error}", file=sys.stderr)
    return 2
