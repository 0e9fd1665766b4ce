"""Deletes the least recently used caches of tokens when all of them take more space than $POSTRAIN_CACHE_GB."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from postrain.errors import ConfigError

VARIABLE = "POSTRAIN_CACHE_GB"
DEFAULT_GB = 20.0


def limit() -> float:
    """Bytes that all caches of tokens may take. Raises ConfigError."""
    given = os.environ.get(VARIABLE)
    try:
        found = float(given or DEFAULT_GB)
    except ValueError:
        found = -1.0
    if not found >= 0:
        raise ConfigError(f"{VARIABLE}={given}: expected a number of gigabytes, such as {DEFAULT_GB:g}")
    return found * 1e9


def size(directory: Path) -> int:
    """Bytes of the files of a directory."""
    return sum(file.stat().st_size for file in directory.iterdir())


def mark_used(directory: Path) -> None:
    """Makes a cache the most recently used one."""
    try:
        os.utime(directory)
    except OSError:  # of another user
        return


def delete_surplus(kept: Path) -> list[Path]:
    """Deletes the least recently used caches beside `kept`, which stays, and returns them.

    A run that has mapped a deleted file keeps it until it ends.
    """
    others = [one for one in kept.parent.glob("tokens-*") if one.is_dir() and one != kept]
    others.sort(key=lambda one: one.stat().st_mtime)
    total, deleted = sum(map(size, [kept, *others])), []
    while others and total > limit():
        oldest = others.pop(0)
        total -= size(oldest)
        shutil.rmtree(oldest, ignore_errors=True)
        oldest.with_suffix(".lock").unlink(missing_ok=True)
        deleted.append(oldest)
    return deleted
