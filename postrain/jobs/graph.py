"""The job graph: what a job is, which program runs it, where it lies, and what it takes from other jobs.

A sweep is a graph without edges: its jobs are settings and seeds of one command line. A pipeline is a chain of stages:
`${stages.NAME...}` in a config is replaced by the folder, model or data of an earlier job. Leaves out composing the
configs (plan.py) and running the jobs (sweep.py, pipeline.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Self

from omegaconf import OmegaConf

from postrain.config.arguments import resolved as resolved_config
from postrain.config.tree import SESSION
from postrain.runs.folder import config_hash
from postrain.runs.status import Status

Kind = Literal["train", "generate", "evaluate", "call", "pipeline"]
# What a training run began with.
START = "start"
REFERENCE = re.compile(r"\$\{stages\.([^}]*)\}")
PRODUCTS: Mapping[Kind, Mapping[str, str]] = {
    "train": {"folder": "", "model": "model", "start": START},
    "generate": {"folder": "", "data": "data.jsonl"},
    "evaluate": {"folder": ""},
    "call": {"folder": ""},
}
"""What a later job may take from a job of each kind, and where that lies in its folder; START lies elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep, or one stage of a pipeline."""

    name: str
    """`kl_coef=0.1 seed=0` in a sweep; `stage` or `stage.branch` in a pipeline."""
    kind: Kind = "train"
    folder: str
    """Inside the folder of the graph."""
    overrides: tuple[str, ...] = ()
    """Its whole command line; before it is composed, the overrides of its YAML."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """As composed, references not resolved; empty before that. For kind `call`: the function and its arguments."""
    hash: str = ""
    """Equal for equal configs."""
    number: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What varies in a sweep, by key."""
    seed: int | None = None
    confirm: tuple[str, ...] = ()
    """Overrides that name code or an address, which have to be given again to resume the job."""

    def record(self) -> dict[str, Any]:
        """An entry of jobs.json."""
        known = {"settings": self.settings, "seed": self.seed, "words": self.overrides, "hash": self.hash}
        return {"number": self.number, "label": self.name, **known, "folder": self.folder, "confirm": self.confirm}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The job of an entry of jobs.json. Raises KeyError or TypeError for a damaged one."""
        known = {name: record[name] for name in ("number", "settings", "seed", "hash", "folder")}
        confirm = tuple(record.get("confirm", ()))
        return cls(name=record["label"], overrides=tuple(record["words"]), confirm=confirm, **known)


def is_done(folder: Path) -> bool:
    """Whether the job in a folder has come to its end."""
    return Status(folder / "status.json").read().get("status") == "done"


def location(root: Path, job: Job) -> Path:
    """The folder of a job; that of another job of the sweep, where they share it."""
    own = root / job.folder
    return Path(os.path.normpath(root / os.readlink(own))) if own.is_symlink() else own


def references(jobs: Sequence[Job], root: Path) -> dict[str, Any]:
    """What `${stages...}` stands for, with the graph in the folder `root`."""
    found: dict[str, Any] = {}
    for job in jobs:
        *above, last = job.name.split(".")
        home = found.setdefault(above[0], {}) if above else found
        home[last] = {name: str(location(root, job) / file) for name, file in PRODUCTS[job.kind].items()}
        if job.kind == "train" and job.config:
            home[last][START] = job.config["model"]["name"] or job.config["model"]["path"]
    return found


def resolved(job: Job, stages: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Config and overrides of a job with every reference resolved; `stages` is what `${stages...}` stands for."""
    config = resolved_config(OmegaConf.create({**job.config, "stages": stages, "words": list(job.overrides)}))
    overrides = config.pop("words")
    del config["stages"]
    return config, overrides


def digests(jobs: Sequence[Job]) -> dict[str, str]:
    """A hash for each stage, by name: equal where the configs are, and those of all stages that they refer to."""
    found: dict[str, str] = {}
    for job in jobs:
        hashed = [replace(each, folder=found.get(each.name, each.folder)) for each in jobs]
        config, _ = resolved(job, references(hashed, Path()))
        found[job.name] = config_hash({"stage": job.name, "config": {**config, **SESSION}})
    return found
