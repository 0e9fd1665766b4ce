"""python -m postrain.evaluate: evaluates one or more models on the same prompts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch is imported, as in train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import DictConfig

from postrain.cli.main import report_error, start
from postrain.config.arguments import resolved


def evaluate(
    config: DictConfig, words: list[str], group: str | None, directory: Path | None, *, program: str = "evaluate"
) -> float | None:
    """Runs one evaluation."""
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from postrain.evaluation.config import check_overrides  # noqa: PLC0415
    from postrain.evaluation.evaluate import EvalTaskError  # noqa: PLC0415
    from postrain.jobs.session import PROGRAMS, execute  # noqa: PLC0415

    check_overrides(words)
    plain = resolved(config)
    try:
        return execute(PROGRAMS[program], plain, overrides=words, group=group, directory=directory)
    except EvalTaskError as error:
        if config.debug:
            raise
        report_error(error)
        # Not 2: the other tasks have results.
        sys.exit(1)


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit code."""
    return start(argv, config_name="evaluate", run=evaluate)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
