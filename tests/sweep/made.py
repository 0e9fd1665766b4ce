"""A program whose jobs are done in no time: what a job measures is worked out from its words."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from postrain.folder import RunFolder
from postrain.main import start
from postrain.types import ConfigError
from tests.runs import CONF


class Program:
    """What `train.py` does, with this in place of training; remembers its jobs."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken: set[str] = set()
        """Jobs, by their names, that fail."""

    def __call__(self, config: DictConfig, words: list[str], group: str | None, place: Path | None) -> float | None:
        assert place is not None
        assert group is not None
        folder = RunFolder.at(place)
        saved = place / "words.json"
        if config.resume:
            words = json.loads(saved.read_text())
        saved.write_text(json.dumps(words))
        folder.status.running()
        given = dict(word.split("=", 1) for word in words)
        name = given["name"].strip("'")
        self.ran.append(name)
        if name in self.broken:
            folder.config.write_text("begun: true")
            raise ConfigError(f"{name} is broken")
        kl_coef, seed = float(given["method.kl_coef"]), int(given.get("seed", 0))
        finish(folder, reward=1 - kl_coef + 0.01 * seed, kl=0.5 / (1 + kl_coef))
        return None


def finish(folder: RunFolder, *, reward: float, kl: float, stopped: str | None = None) -> None:
    """A finished run that has measured these."""
    changes = {"eval/reward/total": [0.0, reward], "eval/kl/exact": [0.0, kl]}
    result: dict[str, Any] = {"metric": "eval/reward/total", "direction": "max", "objective": reward}
    folder.result.write_text(json.dumps({**result, "changes": changes, "stopped": stopped}))
    folder.status.done()


def sweep(program: Program, *words: str, launcher: str = "basic") -> int:
    """What the command line with these words comes to; its exit code."""
    try:
        return start(["train.py", f"hydra/launcher={launcher}", *words], CONF, run=program)
    except SystemExit as end:
        return int(end.code or 0)


if __name__ == "__main__":
    # A job of its own process, for the local launcher: words are key=value, the folder is hydra.run.dir.
    said = dict(word.split("=", 1) for word in sys.argv[1:])
    home = RunFolder.at(Path(said["hydra.run.dir"].strip("'")))
    home.status.running()
    match said["do"]:
        case "finish":
            finish(home, reward=1.0, kl=0.1)
        case "mistake":
            print("error: method.kl_coef: expected a number")
            sys.exit(2)
        case "die":
            import os

            os.kill(os.getpid(), 9)
