"""Values in files that may be damaged or from a third party: usable, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from postrain.config.yaml_file import Loader, check_size
from postrain.jsonl import Record, is_bounded, number, records_of

Curve = tuple[list[int], list[float]]
"""Updates, and the metric after each of them."""

LARGEST = 1e100
"""Larger values, infinity and nan cannot be drawn."""


def is_held_out(name: str) -> bool:
    """Whether evaluations measure a metric; the others are of training data."""
    return name.startswith(("eval/", "gold/"))


def finite(value: Any) -> float | None:
    """A number that can be drawn."""
    known = number(value)
    return known if known is not None and abs(known) < LARGEST else None


def mapping(found: Any) -> Record:
    """The value if it is a mapping, else {}."""
    return found if isinstance(found, dict) else {}


def read_yaml(path: Path) -> Record:
    """The mapping in a YAML file; {} if the file is missing or damaged."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
        check_size(text)
        found = yaml.load(text, Loader)
    except (OSError, yaml.YAMLError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and is_bounded(found) else {}


def read_records(path: Path) -> list[Record]:
    """The mappings of a JSON list; [] if the file is missing or damaged."""
    try:
        return [one for one in records_of(json.loads(path.read_bytes())) if is_bounded(one)]
    except (OSError, ValueError, RecursionError):
        return []


def text_of(value: Any) -> str:
    """The value if it is a string, else ""."""
    return value if isinstance(value, str) else ""


def update_of(record: Record) -> int:
    """The update of a record; 0 if missing."""
    return whole(record.get("update"), 0)


def whole(value: Any, otherwise: int) -> int:
    """The value if it is a count, else `otherwise`."""
    known = number(value)
    return int(known) if known is not None and 0 <= known < 1e15 else otherwise


def damaged(name: str, lines: int) -> list[str]:
    """The line about a file with unreadable lines."""
    return [f"{name}: {lines} damaged line{'s' if lines > 1 else ''} left out"] if lines else []
