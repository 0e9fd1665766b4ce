"""Resolves the models of an evaluation, gives each a unique name, and finds the training run it comes from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postrain.config.schema import Section
from postrain.config.tree import parse
from postrain.config.trust import UntrustedFolder
from postrain.errors import ConfigError
from postrain.jsonl import read_json
from postrain.methods.teacher import is_url
from postrain.models.by_name import resolve_by_name
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config

INITIAL = "start"
"""Value of `reference`: the reference model of the run, else its initial model."""
# Run folder names of postrain.runs.folder: time, config hash, and a number if two runs started in the same second.
RUN_FOLDER_NAME = re.compile(r"[\d-]+_[\d-]+-([0-9a-f]{8}(?:-\d+)?)")


@dataclass(frozen=True, kw_only=True)
class InitialModel(Section):
    """The part of a run's config that names its initial model."""

    model: ModelSource


@dataclass(frozen=True)
class SourceRun:
    """The training run of a model."""

    folder: RunFolder
    config: Mapping[str, Any]
    """The saved config, perhaps of an earlier version."""

    @classmethod
    def of(cls, path: str) -> SourceRun | None:
        """The training run that `path`, a run folder, its model/ or merged/, belongs to; None for any other model."""
        given = Path(path).expanduser()
        for directory in (given, given.parent) if given.name in ("model", "merged") else (given,):
            folder = RunFolder(directory)
            if folder.config.is_file() and folder.manifest.is_file():
                config = saved_config(folder)
                return cls(folder, config) if "method" in config else None
        return None

    def data(self) -> Mapping[str, Any]:
        """The manifest's entry of the training data."""
        found = read_json(self.folder.manifest).get("data")
        return found if isinstance(found, Mapping) else {}

    def reference_model(self) -> ResolvedModel:
        """The reference model of the run, else its initial model."""
        named, method = self.config.get("reference"), self.config.get("method")
        # A teacher that is the initial model with another prompt, has other tokens or is a server.
        foreign = isinstance(method, Mapping) and method.get("cross_tokenizer")
        if foreign or (isinstance(named, str) and (named == "self" or is_url(named))):
            named = None
        remedy = "give another with reference=DIRECTORY, or disable KL with reference=null"
        if named is not None:
            return resolve_by_name("reference", named, f"another; {remedy}")
        node = {"model": self.config["model"]}
        UntrustedFolder(self.folder.path, ()).check(node, InitialModel)
        try:
            return parse(node, InitialModel).model.resolve()
        except ConfigError as error:
            reason = str(error).removeprefix("model.").partition(";")[0]
            raise ConfigError(
                f"reference={INITIAL}: the initial model of the run no longer exists ({reason}); {remedy}"
            ) from None


@dataclass(frozen=True, kw_only=True)
class EvalSource:
    """Where an evaluated model comes from."""

    name: str
    """Unique among the compared models."""
    path: str
    """As given by the user."""
    resolved: ResolvedModel
    origin: SourceRun | None
    """The training run it comes from; None for other models."""


def eval_sources(model: ModelSource, compare: Sequence[str]) -> list[EvalSource]:
    """The sources of the model and of the models in `compare`. Raises ConfigError for a missing or a reward model."""
    found = [("model.path", model.path, model.resolve())]
    found += [
        ("compare", other, resolve_by_name("compare", other, "run folders, model directories")) for other in compare
    ]
    for key, path, resolved in found:
        if resolved.head == "scalar":
            raise ConfigError(
                f"{key}={path}: a reward model cannot generate text; give a language model (the accuracy of a reward "
                "model is in its run's report)"
            )
    names = unique_names([path for _, path, _ in found], [resolved.name for _, _, resolved in found])
    return [
        EvalSource(name=name, path=path, resolved=resolved, origin=SourceRun.of(path))
        for name, (_, path, resolved) in zip(names, found, strict=True)
    ]


def unique_names(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """Each model's name; duplicates get the name of their run, and a number if that is not unique either."""
    longer = [
        name if list(names).count(name) == 1 else f"{name} {run_name(path)}"
        for path, name in zip(paths, names, strict=True)
    ]
    return [
        name if longer.count(name) == 1 else f"{name} ({longer[:index].count(name) + 1})"
        for index, name in enumerate(longer)
    ]


def run_name(path: str) -> str:
    """A short name of a run: the hash in its folder's name, else the folder's name."""
    directory = Path(path)
    name = directory.parent.name if directory.name == "model" else directory.name
    match = RUN_FOLDER_NAME.fullmatch(name)
    return match[1] if match else name
