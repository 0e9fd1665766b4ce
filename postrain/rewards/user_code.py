"""Functions that a user wrote: found by path, and when one raises, the error in one line with its file and line."""

from __future__ import annotations

import importlib.util
import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Annotated, Any

from postrain.schema import Confirm, load_target
from postrain.types import ConfigError


def is_own(path: Any) -> bool:
    """Whether a path names a reward function of this package: nothing else of it takes completions."""
    if not isinstance(path, str) or not path.startswith("postrain.rewards.") or ":" in path:
        return False
    try:
        function = load_target(path)
    except ConfigError:
        return False
    here = inspect.isfunction(function) and function.__module__.startswith("postrain.rewards.")
    return here and "completions" in inspect.signature(function).parameters


FunctionPath = Annotated[str, Confirm("runs this Python", harmless=is_own)]
"""`package.module.name`, or `path/to/file.py:name`."""


def load_function(path: str, key: str) -> Callable[..., Any]:
    """The function at `module.name` or `file.py:name`; `key` is the config key that says so."""
    file, colon, name = path.rpartition(":")
    if not colon:
        return load_target(path)
    functions = vars(_module(Path(file), key))
    if not callable(functions.get(name)):
        near = get_close_matches(name, [known for known, value in functions.items() if callable(value)], n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key}={path}: {file} has no function {name}{meant}")
    return functions[name]


def _module(file: Path, key: str) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"{key}: there is no file {file} (looked for {file.resolve()})")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{key}: {file} is not a Python file; expected path/to/file.py:name")
    module = importlib.util.module_from_spec(spec)
    with Blame(f"{key}: {file} cannot be imported:", str(spec.origin)):
        spec.loader.exec_module(module)
    return module


def place(function: Callable[..., Any]) -> tuple[str, int]:
    """File and line of a function; its type and 0 where it has no Python source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else (type(function).__qualname__, 0)


@dataclass(frozen=True)
class Blame:
    """Turns whatever a user's code raises into one line: who, what, and where in its own file.

    A context manager, since nothing is swallowed: the line takes the error's place, with the error as its cause.
    """

    who: str
    file: str
    """The user's file; the deepest line in it is the one to tell."""
    culprit: Callable[[], str] = str
    """Says on what it happened; asked only when it has."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not isinstance(error, Exception) or isinstance(error, ConfigError):
            return
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        where = f" at {self.file}:{lines[-1]}" if lines else ""
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        raise ConfigError(f"{self.who} {what}{where}{self.culprit()}") from error
