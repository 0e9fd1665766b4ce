"""What a row says about its own answer: true, false, or a thumb. Bad answers are judged, never imitated."""

from __future__ import annotations

from typing import Any

from postrain.data.fields import Fields, Malformed
from postrain.data.readers import Cell

TRUTHS = {"true": True, "false": False, "1": True, "0": False}
ONE_AND_ZERO = "label 1 or 0, or in quotes, read as true or false"
THUMBS = {"👍": True, "👎": False, "up": True, "down": False, "thumbs_up": True, "thumbs_down": False}


def verdict(fields: Fields) -> bool | None:
    """The label of a row; None in a table without one."""
    if not fields.layout.parts["label"]:
        return None
    name, value = fields.needed("label")
    return label(fields, value, name)


def label(fields: Fields, value: Any, name: str) -> bool:
    """A value that has to be a verdict: true, false, 1, 0, or a thumb. Words of CSV files and of JSON are the same."""
    found = truth(value)
    if found is None and isinstance(value, int | float | str):
        found = TRUTHS.get(str(value).strip().lower().removesuffix(".0"))
        fields.repaired.add(ONE_AND_ZERO)
    if found is None:
        raise Malformed(f"{name} has to be true or false (or 1 or 0), got {value!r:.40}; correct or remove the row")
    return found


def truth(value: Any) -> bool | None:
    """A boolean, also as a cell of a CSV file has it, or a thumb; None for all else."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    if isinstance(value, Cell) and word in ("true", "false"):
        return word == "true"
    return THUMBS.get(word)
