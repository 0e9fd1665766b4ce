"""Mistakes of the jobs of a sweep or pipeline, collected before the first one starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from postrain.config.tree import parse
from postrain.data.files import data_files
from postrain.errors import ConfigError


class Problems:
    """Collects error messages of several jobs: each line once, with the names of its jobs."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Collects the ConfigError of a job."""
        try:
            yield
        except ConfigError as error:
            for line in str(error).splitlines():
                self.lines.setdefault(line, []).append(name)


def parsed(config: Mapping[str, Any], root: type, products: Path) -> Any:
    """The typed config of a job. Raises one ConfigError with all its mistakes and the missing data files, except those
    in `products`, which earlier jobs write."""
    missing = [*_missing_files(config.get("data") or {}, products)]
    try:
        found = parse(config, root)
    except ConfigError as error:
        raise ConfigError("\n".join([str(error), *missing])) from None
    if missing:
        raise ConfigError("\n".join(missing))
    return found


def _missing_files(data: Mapping[str, Any], products: Path) -> Iterator[str]:
    for key in ("path", "eval_path"):
        given = data.get(key)
        paths = {f"{key}.{name}": path for name, path in given.items()} if isinstance(given, Mapping) else {key: given}
        for name, path in paths.items():
            if path is not None and products not in Path(path).parents and not data_files(path):
                yield f"data.{name}: there is no file {path}"
