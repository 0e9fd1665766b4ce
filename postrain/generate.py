"""python -m postrain.generate: completions of a data source's prompts, scored, and a data file of those kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch is imported, as in train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import DictConfig

from postrain.cli.main import start
from postrain.config.arguments import resolved

CONF = Path(__file__).parents[1] / "conf"


def generate(config: DictConfig, words: list[str], group: str | None, place: Path | None) -> float | None:
    """One generation of a command line."""
    # Imported here so that --help and mistakes on the command line answer at once (start-up time).
    from postrain.jobs.frame import GENERATE, execute  # noqa: PLC0415

    plain = resolved(config)
    return execute(GENERATE, plain, overrides=words, group=group, place=place)


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit code."""
    return start(argv, CONF, config_name="generate", run=generate)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
