"""The context that a command receives besides its config: the run folder, and how the run was started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightning.pytorch import Callback

from postrain.config.schema import Section
from postrain.config.tree import settings, settings_of
from postrain.config.yaml_file import dump_yaml
from postrain.jsonl import atomic_write_text
from postrain.runs.folder import RunFolder, writing
from postrain.runs.interrupt import Interrupt
from postrain.runs.manifest import write_manifest


class DataAudit(Protocol):
    """The audit of a data set."""

    def to_dict(self) -> dict[str, Any]: ...


class ModelIdentity(Protocol):
    """The name and fingerprint of a resolved model."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def stand_in_for(self) -> str | None: ...


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """The folder of a run and how it was started; equal on all ranks except for the command line."""

    folder: RunFolder
    interrupt: Interrupt
    command: tuple[str, ...]
    """The program, as typed in a shell."""
    overrides: Sequence[str] = ()
    """The overrides after the program."""
    group: str | None = None
    """The tracker group of the run's sweep or pipeline."""
    callbacks: Sequence[Callback] = ()
    """Further callbacks of a training run, which precede all others."""

    def save_config(self, config: Section) -> None:
        """Writes config.yaml, from which the run is resumed."""
        write_config(self.folder, config)

    def save_manifest(
        self,
        config: Section,
        data: DataAudit,
        model: ModelIdentity,
        *,
        seeds: Mapping[str, int],
        reference: str | None = None,
        update: int = 0,
    ) -> None:
        """Writes manifest.json; `reference` is the fingerprint of a reference model other than `model`, `update` the
        last update before this session."""
        identity = {"name": model.name, "source": model.source, "fingerprint": model.fingerprint}
        write_manifest(
            self.folder,
            config=settings_of(config),
            overrides=self.overrides,
            seeds=seeds,
            data=data.to_dict(),
            model=identity | ({"reference": reference} if reference else {}),
            stand_in_for=model.stand_in_for,
            program=self.command,
            update=update,
        )


def write_config(folder: RunFolder, config: Section) -> None:
    """Writes the config.yaml of a run."""
    with writing(folder.config):
        atomic_write_text(folder.config, dump_yaml(settings(config)), private=True)
