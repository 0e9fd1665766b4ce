"""Lists that stand in a cell as text, as CSV files and some exports have them: JSON is read, anything else refused."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from postrain.data.layouts import PARTS
from postrain.data.readers import Cell
from postrain.data.values import decode, usable
from postrain.types import ConfigError

TURNS = frozenset(name for part in ("messages", "prompt", "completion", "chosen", "rejected") for name in PARTS[part])
"""Columns that hold messages, or text."""
LISTS = frozenset(name for part in ("history", "steps", "labels") for name in PARTS[part])
"""Columns that hold lists, and text only where a file has no lists."""
MESSAGES = re.compile(r"""\s*(\[\s*)?\{\s*(['"])(role|from|content|value)\2\s*:""")
"""How text begins that is messages: as JSON, or as Python prints them."""


def unpacked(values: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """The columns of a row, its lists and messages read from text. Raises ConfigError for text that is not JSON."""
    return {name: _read(name, value, where) if isinstance(value, str) else value for name, value in values.items()}


def _read(name: str, value: str, where: str) -> Any:
    is_list = name in LISTS and isinstance(value, Cell) and value.lstrip().startswith("[")
    if not is_list and not (name in TURNS and MESSAGES.match(value)):
        return value
    try:
        found = decode(value)
    except json.JSONDecodeError:
        raise ConfigError(
            f"{where}: {name} holds a list as text that is not JSON, got {value!r:.60}; write JSON lines, or the "
            "column with json.dumps"
        ) from None
    # What stood in the text as escapes is looked at only now.
    return usable({name: found}, where)[0][name]
