"""python -m postrain.evaluate: measures of a model, or of several on the same prompts, each with its interval."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# Before torch is imported, as in train.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from omegaconf import DictConfig, OmegaConf

from postrain.main import start

CONF = Path(__file__).parents[1] / "conf"


def evaluate(config: DictConfig, words: list[str], group: str | None, place: Path | None) -> float | None:
    """One evaluation of a command line."""
    # Imported here so that --help and mistakes on the command line answer at once (start-up time).
    from postrain.appraisal.run import execute  # noqa: PLC0415

    plain: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    return execute(plain, overrides=words, group=group, place=place)


def main(argv: list[str]) -> int:
    """Runs one command line; returns the exit code."""
    return start(argv, CONF, config_name="evaluate", run=evaluate)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
