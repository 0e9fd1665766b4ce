"""An on-disk cache of directories, for conversions that take longer than loading their result."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from postrain.errors import ConfigError


def cache_directory() -> Path:
    """$POSTRAIN_CACHE, or ~/.cache/postrain."""
    return Path(os.environ.get("POSTRAIN_CACHE") or Path.home() / ".cache" / "postrain")


def disk_cached(name: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` of the cache, filled by `make` on first use; it is complete or absent."""
    found = cache_directory() / name
    if found.is_dir():
        return found
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
        write_directory(found, make)
    except OSError as error:
        raise ConfigError(f"{found} cannot be written ({error}); set POSTRAIN_CACHE to a writable folder") from None
    return found


def write_directory(directory: Path, fill: Callable[[Path], None]) -> None:
    """Fills a temporary directory and renames it to `directory`, replacing an existing one."""
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        fresh, old = Path(scratch, "fresh"), Path(scratch, "old")
        fresh.mkdir()
        fill(fresh)
        if directory.exists():
            directory.rename(old)
        _move(fresh, directory)


def _move(fresh: Path, directory: Path) -> None:
    """Renames `fresh` to `directory`; keeps the directory of another process that was faster."""
    try:
        fresh.rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
        shutil.rmtree(fresh)
