"""Prompts composed from several columns, for rows without a prompt column (data.prompt_template)."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

from postrain.data.layouts import names
from postrain.errors import ConfigError

KEY = "data.prompt_template"


class PromptTemplate:
    """A text with the names of columns in braces: `Use {nums} to make {target}.`; `{{` and `}}` are braces."""

    def __init__(self, text: str) -> None:
        """Raises ConfigError for unpaired braces, and for format specifications, which are not supported."""
        try:
            parsed = tuple(Formatter().parse(text))
        except ValueError as error:
            raise ConfigError(f"{KEY}: {text!r:.80} ({error}); write {{{{ and }}}} for braces") from None
        if any(column is not None and (not column or spec or conversion) for _, column, spec, conversion in parsed):
            raise ConfigError(f"{KEY}: {text!r:.80}; expected column names alone in braces, such as {{question}}")
        self._parts = tuple((literal, column) for literal, column, _, _ in parsed)
        self.columns = frozenset(column for _, column in self._parts if column)
        """The columns that the template uses."""
        if not self.columns:
            raise ConfigError(f"{KEY}: {text!r:.80} names no column; write one in braces, such as {{question}}")

    def fill(self, values: Mapping[str, Any], where: str) -> str:
        """The prompt of a row. Raises ConfigError for a column that the row lacks."""
        missing = sorted(column for column in self.columns if values.get(column) is None)
        if missing:
            raise ConfigError(f"{where}: {KEY} needs the column {missing[0]}; the columns here are {names(values)}")
        return "".join(literal + (str(values[column]) if column else "") for literal, column in self._parts)
