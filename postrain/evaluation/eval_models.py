"""The models of an evaluation: found, told apart by a name, with the runs they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postrain.config.schema import Section
from postrain.config.tree import parse
from postrain.config.trust import Guest
from postrain.errors import ConfigError
from postrain.jsonl import read_json
from postrain.models.by_name import resolve_by_name
from postrain.models.sources import ModelSource, ResolvedModel, resolve_for
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config

INITIAL = "start"
"""For `reference`: what the run began with."""
# What postrain.runs.folder calls a run: its time, a hash of its config, and a number where two began in one second.
RUN_FOLDER_NAME = re.compile(r"[\d-]+_[\d-]+-([0-9a-f]{8}(?:-\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Start(Section):
    """The part of a run's config that names what it began with."""

    model: ModelSource


@dataclass(frozen=True)
class SourceRun:
    """The run a model comes from."""

    folder: RunFolder
    config: Mapping[str, Any]
    """As its folder has it, perhaps of an earlier version."""

    @classmethod
    def of(cls, path: str) -> SourceRun | None:
        """The training run that `path`, a run folder or its model/, belongs to; None for any other model."""
        place = Path(path).expanduser()
        for directory in (place, place.parent) if place.name == "model" else (place,):
            folder = RunFolder(directory)
            if folder.config.is_file() and folder.manifest.is_file():
                config = saved_config(folder)
                return cls(folder, config) if "method" in config else None
        return None

    def data(self) -> Mapping[str, Any]:
        """What the manifest says of the data it was trained on."""
        found = read_json(self.folder.manifest).get("data")
        return found if isinstance(found, Mapping) else {}

    def start(self) -> ResolvedModel:
        """The model it was compared with while it trained, else the one it began with."""
        named = self.config.get("reference")
        remedy = "name another with reference=DIRECTORY, or compare with none: reference=null"
        if named is not None:
            return resolve_for("reference", named, f"another; {remedy}")
        node = {"model": self.config["model"]}
        Guest(self.folder.path, ()).check(node, Start)
        try:
            return parse(node, Start).model.resolve()
        except ConfigError as error:
            reason = str(error).removeprefix("model.").partition(";")[0]
            raise ConfigError(f"reference={INITIAL}: what the run began with is gone ({reason}); {remedy}") from None


@dataclass(frozen=True, kw_only=True)
class EvalSource:
    """A model that is evaluated."""

    name: str
    """Its own among those that are compared."""
    path: str
    """As the user wrote it."""
    resolved: ResolvedModel
    origin: SourceRun | None
    """The run it comes from."""


def eval_sources(model: ModelSource, compare: Sequence[str]) -> list[EvalSource]:
    """The model and those it is compared with. Raises ConfigError for one that is not there or cannot write."""
    found = [("model.path", model.path, model.resolve())]
    found += [
        ("compare", other, resolve_by_name("compare", other, "run folders, model directories")) for other in compare
    ]
    for key, path, resolved in found:
        if resolved.head == "scalar":
            raise ConfigError(
                f"{key}={path}: a reward model, which cannot write; give a language model, and see a reward model's "
                "own accuracy in its run's report"
            )
    names = unique_names([path for _, path, _ in found], [resolved.name for _, _, resolved in found])
    return [
        EvalSource(name=name, path=path, resolved=resolved, origin=SourceRun.of(path))
        for name, (_, path, resolved) in zip(names, found, strict=True)
    ]


def unique_names(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """Each model's name; where several share one, with the folder of their run, and with a number if need be."""
    longer = [
        name if list(names).count(name) == 1 else f"{name} {run_name(path)}"
        for path, name in zip(paths, names, strict=True)
    ]
    return [
        name if longer.count(name) == 1 else f"{name} ({longer[:place].count(name) + 1})"
        for place, name in enumerate(longer)
    ]


def run_name(path: str) -> str:
    """What tells one run from another of the same method and model: the hash in its folder's name, else the name."""
    place = Path(path)
    name = place.parent.name if place.name == "model" else place.name
    made = RUN_FOLDER_NAME.fullmatch(name)
    return made[1] if made else name
