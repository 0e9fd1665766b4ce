"""python -m postrain.generate: samples and scores completions of a data source's prompts, and selects rows of data."""

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
    """A callable module: after this command module is imported, `postrain.generate` refers to it, and
    `postrain.generate(model, prompts)` must still call the function of the public API."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        # For a fast start-up: the command imports torch after its config is checked.
        from postrain import api  # noqa: PLC0415

        return api.generate(*arguments, **options)


sys.modules[__name__].__class__ = Callable


def generate(config: DictConfig, words: list[str], group: str | None, directory: Path | None) -> float | None:
    """Runs one generation."""
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from postrain.jobs.session import GENERATE, execute  # noqa: PLC0415

    plain = resolved(config)
    return execute(GENERATE, plain, overrides=words, group=group, directory=directory)


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit code."""
    return start(argv, config_name="generate", run=generate)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
