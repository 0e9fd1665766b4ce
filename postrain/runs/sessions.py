"""The sessions of a run, as manifest.json records them: the first one at its top level, later ones in `sessions`.

Imports no torch, since the report reads folders without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from postrain.jsonl import Record, number, records_of

MADE_WITH = ("git", "versions", "hardware")
"""What a session records besides its command and the update after which it began."""


def sessions(manifest: Mapping[str, Any]) -> list[Record]:
    """The sessions that made the updates of a run, oldest first. Leaves out those whose updates a later one repeated.

    A session has `update` (the last one before it), `command` and MADE_WITH.
    """
    found: list[Record] = [{"update": 0, "command": manifest.get("reproduce")}]
    found[0] |= {name: manifest.get(name) for name in MADE_WITH}
    for each in later_sessions(manifest):
        found = [*(one for one in found if one["update"] < each["update"]), each]
    return found


def later_sessions(manifest: Mapping[str, Any]) -> list[Record]:
    """All sessions after the first one."""
    return [one for one in records_of(manifest.get("sessions")) if isinstance(one.get("update"), int)]


def with_changes(manifest: Mapping[str, Any]) -> list[Record]:
    """The later sessions that could change settings, also if another one repeated their updates."""
    return [one for one in later_sessions(manifest) if "allow_change=true" in str(one.get("command"))]


def parts(manifest: Mapping[str, Any], name: str) -> list[Record]:
    """One of MADE_WITH of each session; {} where it is unknown."""
    return [found if isinstance(found := one.get(name), dict) else {} for one in sessions(manifest)]


def threads_after(manifest: Mapping[str, Any], update: int) -> int | None:
    """The number of threads that made the update after this one; None if it is unknown."""
    begun = [hardware for began, hardware in _hardware(manifest) if began <= update]
    found = number(begun[-1].get("threads")) if begun else None
    return int(found) if found and 0 < found <= 1024 else None


def thread_changes(manifest: Mapping[str, Any]) -> list[int]:
    """The updates after which a session continued with another number of threads."""
    begun = [began for began, _ in _hardware(manifest)[1:]]
    return [began for began in begun if threads_after(manifest, began) != threads_after(manifest, began - 1)]


def _hardware(manifest: Mapping[str, Any]) -> list[tuple[int, Record]]:
    begun = [one["update"] for one in sessions(manifest)]
    return [*zip(begun, parts(manifest, "hardware"), strict=True)]
