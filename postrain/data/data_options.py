"""Sources of rows that are named by a path or by an option of the group `data`, such as world_sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from postrain.config.paths import command
from postrain.config.reference import complete_options
from postrain.data.sources import Files, Loaded, Source, read_held_out
from postrain.errors import ConfigError
from postrain.suggestions import did_you_mean
from postrain.types import Count

OPTION_KEYS = ("source", "path", "eval_path", "max_rows", "columns", "prompt_template")
"""The keys of a data option that a mixture uses; all others are those of the run."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of several sources of rows."""

    path: str | None = None
    """A file, a folder or a glob, as data.path."""
    source: Source | None = None
    """Source of the rows, which a path replaces. Naming an option of the group data sets it."""
    eval_path: str | None = None
    """Path of the held-out rows; null uses those of the source, else holds out training prompts."""
    max_rows: Count | None = None
    """Maximum number of training rows, from the beginning; null is data.max_rows."""
    columns: Mapping[str, str | None] = field(default_factory=dict)
    """Column names by part of the record, in addition to data.columns."""
    prompt_template: str | None = None
    """Text of the prompt with the names of columns in braces; null is data.prompt_template."""

    def load(self, key: str, eval_rows: int) -> Loaded:
        """The rows. Raises ConfigError with the `key` of this source."""
        if self.path is None:
            if self.source is None:
                raise ConfigError(f"{key}: names no rows; write {key}.path=FILE, or the name of a data option")
            loaded = self.source.load(eval_rows=eval_rows)
            return replace(loaded, held_out=read_held_out(self.eval_path)) if self.eval_path else loaded
        place = Path(self.path).expanduser()
        if not place.exists() and not any(letter in self.path for letter in "*?["):
            meant = did_you_mean(self.path, complete_options("data"), f"{command('train')} data lists the options")
            raise ConfigError(f"{key}: there is no file and no data option {self.path}; {meant}")
        return Files(path=self.path, eval_path=self.eval_path).load(eval_rows=eval_rows)


def rows_named(name: str) -> dict[str, Any]:
    """The keys that select the rows of a data option or a path."""
    option = complete_options("data").get(name)
    if option is None or Path(name).expanduser().exists():
        return {"path": name}
    return {key: option[key] for key in OPTION_KEYS if option.get(key) is not None}
