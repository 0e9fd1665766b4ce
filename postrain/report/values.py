"""Values in files that a stranger or a crash may have left: usable, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from postrain.jsonl import Record, modest, number

Curve = tuple[list[int], list[float]]
"""Updates, and the metric after each of them."""

LARGEST = 1e100
"""What is larger has left all bounds and cannot be drawn; infinity is larger, and nan is nothing."""


def finite(value: Any) -> float | None:
    """A number that can be drawn."""
    known = number(value)
    return known if known is not None and abs(known) < LARGEST else None


def mapping(found: Any) -> Record:
    """A mapping, if it is one; otherwise an empty one."""
    return found if isinstance(found, dict) else {}


def records_of(found: Any) -> list[Record]:
    """The mappings in a list."""
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def read_yaml(path: Path) -> Record:
    """The mapping in a YAML file; {} where it is missing or damaged."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and modest(found) else {}


def read_records(path: Path) -> list[Record]:
    """The mappings of a JSON list; none where it is missing or damaged."""
    try:
        return [one for one in records_of(json.loads(path.read_bytes())) if modest(one)]
    except (OSError, ValueError, RecursionError):
        return []


def text_of(value: Any) -> str:
    """A text, if it is one."""
    return value if isinstance(value, str) else ""


def update_of(record: Record) -> int:
    """The update a record belongs to; 0 when it does not say."""
    return whole(record.get("update"), 0)


def whole(value: Any, otherwise: int) -> int:
    """A count, or what stands in for it."""
    known = number(value)
    return int(known) if known is not None and 0 <= known < 1e15 else otherwise


def damaged(name: str, lines: int) -> list[str]:
    """What is said of a file with lines that could not be read."""
    return [f"{name}: {lines} damaged line{'s' if lines > 1 else ''} left out"] if lines else []
