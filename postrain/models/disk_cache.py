"""Directories that are made once and kept: conversions that take longer than loading what they give."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from postrain.errors import ConfigError


def cache_directory() -> Path:
    """POSTRAIN_CACHE, or ~/.cache/postrain."""
    return Path(os.environ.get("POSTRAIN_CACHE") or Path.home() / ".cache" / "postrain")


def disk_cached(name: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` of the cache; the first time, `make` fills it. It is whole or it is not there."""
    found = cache_directory() / name
    if found.is_dir():
        return found
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
        write_directory(found, make)
    except OSError as error:
        raise ConfigError(f"{found} cannot be written ({error}); name a folder that can in POSTRAIN_CACHE") from None
    return found


def write_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Fills a new directory beside `directory` and puts it in its place in one move."""
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        fresh.mkdir()
        fill(fresh)
        if directory.exists():
            directory.rename(old)
        _put(fresh, directory)


def _put(fresh: Path, directory: Path) -> None:
    """The move; where another process was first, its directory stays."""
    try:
        fresh.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
        shutil.rmtree(fresh)
