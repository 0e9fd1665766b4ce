"""A fake program: the metrics of a job are computed from its overrides."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from postrain.cli.main import start
from postrain.errors import ConfigError
from postrain.jobs.graph import Job, overrides_of
from postrain.jobs.launchers import Ended
from postrain.runs.folder import RunFolder
from tests.training_runs import CONF


class Program:
    """Replaces training in `train.py`; records its jobs."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.broken: set[str] = set()
        """Names of jobs that fail."""

    def __call__(self, config: DictConfig, words: list[str], group: str | None, directory: Path | None) -> float | None:
        assert directory is not None
        assert group is not None
        folder = RunFolder.at(directory)
        saved = directory / "words.json"
        if config.resume:
            words = json.loads(saved.read_text())
        saved.write_text(json.dumps(words))
        folder.status.running()
        given = dict(word.split("=", 1) for word in words)
        name = given["name"].strip("'")
        self.ran.append(name)
        if name in self.broken:
            folder.config.write_text("started: true")
            raise ConfigError(f"{name} is broken")
        kl_coef, seed = (
            float(next((v for k, v in given.items() if k.endswith("kl_coef")), 0)),
            int(given.get("seed", 0)),
        )
        finish(folder, reward=self.reward(kl_coef, int(seed)), kl=0.5 / (1 + kl_coef))
        return None

    def reward(self, kl_coef: float, seed: int) -> float:
        """The reward after training."""
        return 1 - kl_coef + 0.01 * seed


def finish(folder: RunFolder, *, reward: float, kl: float, stopped: str | None = None) -> None:
    """Writes the results of a finished run."""
    changes = {"eval/reward/total": [0.0, reward], "eval/kl/exact": [0.0, kl]}
    result: dict[str, Any] = {"metric": "eval/reward/total", "direction": "max", "objective": reward}
    folder.result.write_text(json.dumps({**result, "changes": changes, "stopped": stopped}))
    folder.status.done()


@dataclass(frozen=True)
class InProcess:
    """A launcher that runs jobs in this process without composing them again."""

    program: Program
    jobs: int = 1

    def __call__(self, jobs: Sequence[Job], folder: Path, ended: Ended) -> None:
        for job in jobs:
            words = overrides_of(job, folder, resumes=True)
            config = OmegaConf.create({"resume": words[0].startswith("resume="), "name": job.name})
            try:
                self.program(config, words, folder.name, folder / job.folder)
            except ConfigError as error:
                RunFolder(folder / job.folder).status.failed(str(error))
            ended(job)


def sweep(program: Program, *words: str, launcher: str | None = None, root: str = "config") -> int:
    """Runs a command line; returns the exit code. `launcher` is one of Hydra's, `root` a primary config."""
    with pytest.MonkeyPatch.context() as patched:
        if launcher is None:
            patched.setattr("postrain.jobs.sweep.launcher_of", lambda *_: InProcess(program))
        try:
            return start(
                ["train.py", f"hydra/launcher={launcher or 'local'}", *words], CONF, run=program, config_name=root
            )
        except SystemExit as end:
            return int(end.code or 0)
