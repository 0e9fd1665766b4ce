"""What a row says about its own answer: true, false, or a thumb. Bad answers are judged, never imitated."""

from __future__ import annotations

from typing import Any

from postrain.data.fields import Fields, Malformed
from postrain.data.readers import Cell

CSV_TRUTH = {"true": True, "false": False}
THUMBS = {"👍": True, "👎": False, "up": True, "down": False, "thumbs_up": True, "thumbs_down": False}


def verdict(fields: Fields) -> bool | None:
    """The label of a row; None in a table without one."""
    if not fields.layout.parts["label"]:
        return None
    name, value = fields.needed("label")
    label = truth(value, thumbs=name not in ("label", "kto_tag"))
    if label is None:
        raise Malformed(f"{name} has to be true or false, got {value!r:.40}; write true or false without quotes")
    return label


def truth(value: Any, *, thumbs: bool) -> bool | None:
    """A value as true or false; None where it is neither. Text counts in the cells of CSV files, and as a thumb."""
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else ""
    found = CSV_TRUTH.get(word) if isinstance(value, Cell) else None
    return THUMBS.get(word) if found is None and thumbs else found
