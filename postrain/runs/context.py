"""What a program gets besides its config: the folder of its run, and how it was started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from postrain.config.schema import Section
from postrain.config.tree import settings_of
from postrain.runs.folder import RunFolder
from postrain.runs.interrupt import Interrupt
from postrain.runs.manifest import write_manifest


class Data(Protocol):
    """An audit of the rows that were read."""

    def to_dict(self) -> dict[str, Any]: ...


class Model(Protocol):
    """A model that was found."""

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
    """Where a run lies and how it was started; the same on every rank but for the command line."""

    folder: RunFolder
    interrupt: Interrupt
    command: tuple[str, ...]
    """The program, as a shell starts it."""
    overrides: Sequence[str] = ()
    """The words behind it."""
    group: str | None = None
    """What trackers call the sweep or pipeline it belongs to."""

    def save_manifest(
        self, config: Section, data: Data, model: Model, *, seeds: Mapping[str, int], reference: str | None = None
    ) -> None:
        """Writes manifest.json; `reference` is the fingerprint of a reference model that is not `model`."""
        about = {"name": model.name, "source": model.source, "fingerprint": model.fingerprint}
        write_manifest(
            self.folder,
            config=settings_of(config),
            overrides=self.overrides,
            seeds=seeds,
            data=data.to_dict(),
            model=about | ({"reference": reference} if reference else {}),
            stand_in_for=model.stand_in_for,
            program=self.command,
        )
