"""The data of a run as other kinds of record than its method learns from, each prepared when it is first asked for.

The same source, seed and template as the run's own, so that what was held out stays held out.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field

from postrain.data.module import DataModule
from postrain.models.loading import load_tokenizer
from postrain.models.sources import ResolvedModel
from postrain.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class Views:
    """See `Subject.view`."""

    data: DataModule
    """The `data` of the run; each kind is prepared in a copy of it."""
    resolved: ResolvedModel
    """Whose tokenizer writes it."""
    context: int
    completion_tokens: int
    """Left free after prompts."""
    seed: int
    """Of the split, where the source has no held-out rows of its own."""
    made: dict[str, DataModule] = field(default_factory=dict)
    """By kind; whoever has one already gives it here."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why the data cannot be seen as a kind."""

    def __call__(self, kind: str) -> DataModule:
        if kind in self.refused:
            raise ConfigError(self.refused[kind])
        if kind not in self.made:
            try:
                self.made[kind] = self._prepared(kind)
            except ConfigError as error:
                self.refused[kind] = str(error)
                raise
        return self.made[kind]

    def _prepared(self, kind: str) -> DataModule:
        data = copy(self.data)
        data.prepare(
            kind=kind,
            # A tokenizer of its own: preparing data puts a template on it, which `auto` would then find there.
            tokenizer=load_tokenizer(self.resolved),
            context=self.context,
            completion_tokens=self.completion_tokens,
            batch_size=1,
            updates=1,
            seed=self.seed,
        )
        return data
