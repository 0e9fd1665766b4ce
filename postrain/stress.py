"""python -m postrain.stress: attacks a reward before a model is trained against it (an evaluation with one task)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Before torch is imported, as in train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import DictConfig

from postrain.cli.main import start
from postrain.errors import ConfigError
from postrain.evaluate import evaluate


def stress(config: DictConfig, words: list[str], group: str | None, directory: Path | None) -> float | None:
    """Runs the evaluation. Raises ConfigError without a reward that scores single completions."""
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from postrain.config.schema import load_target  # noqa: PLC0415
    from postrain.rewards.base import scores_completions  # noqa: PLC0415

    target = None if config.reward is None else load_target(config.reward["_target_"])
    if target is None or not scores_completions(target) or getattr(target, "compares_group", False) is True:
        raise ConfigError(
            "reward: expected one that scores a single completion, such as answer, learned or judge; others compare "
            "several completions, which leaves nothing to attack"
        )
    return evaluate(config, words, group, directory, program="stress")


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit code."""
    return start(argv, config_name="stress", run=stress)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
