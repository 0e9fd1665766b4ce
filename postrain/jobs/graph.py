"""The job graph: a job, the program that runs it, its folder, and the outputs that later jobs can use.

Jobs of a sweep are independent: settings and seeds of one command line. Stages of a pipeline form a chain:
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

from postrain.config.override_text import format_override
from postrain.config.references import with_references
from postrain.config.tree import SESSION
from postrain.runs.folder import config_hash, is_started
from postrain.runs.status import Status

Kind = Literal["train", "generate", "evaluate", "stress", "call", "pipeline"]
# The initial model of a training run.
START = "start"
REFERENCE = re.compile(r"\$\{stages\.([^}]*)\}")
PRODUCTS: Mapping[Kind, Mapping[str, str]] = {
    "train": {"folder": "", "model": "model", "start": START},
    "generate": {"folder": "", "data": "data.jsonl"},
    "evaluate": {"folder": ""},
    "stress": {"folder": ""},
    "call": {"folder": ""},
}
"""The outputs of each kind of job that later jobs can use, as paths in its folder; START is outside the folder."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run of a sweep, or one stage of a pipeline."""

    name: str
    """`kl_coef=0.1 seed=0` in a sweep; `stage` or `stage.branch` in a pipeline."""
    kind: Kind = "train"
    folder: str
    """Relative to the folder of the sweep or pipeline."""
    overrides: tuple[str, ...] = ()
    """The complete command line; before the job is composed, only the overrides of its YAML."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The composed config with unresolved references, empty before. For kind `call`: the function and its arguments."""
    hash: str = ""
    """Equal for equal configs."""
    number: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The values that vary in a sweep, by key."""
    seed: int | None = None
    """null for a stage that runs with a seed of its own."""
    once: bool = False
    """Whether a stage of a pipeline with seeds runs once for all of them."""
    confirm: tuple[str, ...] = ()
    """Overrides that name code or an address; the user must repeat them to resume the job."""

    @property
    def label(self) -> str:
        """The name, with the seed of a stage."""
        return self.name if self.seed is None else f"{self.name} seed={self.seed}"

    def record(self) -> dict[str, Any]:
        """An entry of jobs.json."""
        known = {"settings": self.settings, "seed": self.seed, "words": self.overrides, "hash": self.hash}
        return {"number": self.number, "label": self.name, **known, "folder": self.folder, "confirm": self.confirm}

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """The job of an entry of jobs.json. Raises KeyError or TypeError if the entry is damaged."""
        known = {name: record[name] for name in ("number", "settings", "seed", "hash", "folder")}
        confirm = tuple(record.get("confirm", ()))
        return cls(name=record["label"], overrides=tuple(record["words"]), confirm=confirm, **known)


def is_done(folder: Path) -> bool:
    """Whether the job in a folder has finished successfully."""
    return Status(folder / "status.json").read().get("status") == "done"


def overrides_of(job: Job, folder: Path, resumes: bool) -> list[str]:
    """The overrides that start a job, or that resume it if its folder holds a run and its program can resume."""
    path = folder / job.folder
    return [format_override("resume", str(path)), *job.confirm] if resumes and is_started(path) else [*job.overrides]


def location(root: Path, job: Job) -> Path:
    """The folder of a job; for a shared stage, the folder of the job that ran it."""
    own = root / job.folder
    return Path(os.path.normpath(root / os.readlink(own))) if own.is_symlink() else own


def references(jobs: Sequence[Job], root: Path, seed: int | None = None) -> dict[str, Any]:
    """The values of `${stages...}` for a pipeline in the folder `root`, in its stages with this seed."""
    found: dict[str, Any] = {}
    for job in jobs:
        if job.seed not in (None, seed):
            continue
        *above, last = job.name.split(".")
        home = found.setdefault(above[0], {}) if above else found
        home[last] = {name: str(location(root, job) / file) for name, file in PRODUCTS[job.kind].items()}
        if job.kind == "train" and job.config:
            home[last][START] = job.config["model"]["name"] or job.config["model"]["path"]
    return found


def resolved(job: Job, stages: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Config and overrides of a job with every reference resolved; `stages` has the values of `${stages...}`."""
    config = with_references({**job.config, "stages": stages, "words": job.overrides})
    overrides = config.pop("words")
    del config["stages"]
    return config, overrides


def digests(jobs: Sequence[Job]) -> dict[str, str]:
    """A hash of each stage, by label, of its config and the configs of all stages that it refers to."""
    found: dict[str, str] = {}
    for job in jobs:
        hashed = [replace(each, folder=found.get(each.label, each.folder)) for each in jobs]
        config, _ = resolved(job, references(hashed, Path(), job.seed))
        found[job.label] = config_hash({"stage": job.name, "config": {**config, **SESSION}})
    return found
