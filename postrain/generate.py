"""python -m postrain.generate: completions of a data source's prompts, scored, and a data file of those kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

# Before torch is imported, as in train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import DictConfig

from postrain.cli.main import start
from postrain.config.arguments import resolved


class Callable(ModuleType):
    """Makes `postrain.generate(model, prompts)` the function of that name also where this module has been imported,
    which then has the name: a command is started by it."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # Start-up time: the command needs no model until its config is checked.
        from postrain import api  # noqa: PLC0415

        return api.generate(*arguments, **options)


sys.modules[__name__].__class__ = Callable


def generate(config: DictConfig, words: list[str], group: str | None, directory: Path | None) -> float | None:
    """One generation of a command line."""
    # Imported here so that --help and mistakes on the command line answer at once (start-up time).
    from postrain.jobs.session import GENERATE, execute  # noqa: PLC0415

    plain = resolved(config)
    return execute(GENERATE, plain, overrides=words, group=group, directory=directory)


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit code."""
    return start(argv, config_name="generate", run=generate)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
