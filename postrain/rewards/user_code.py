"""Functions that a user wrote: found by path, held to a time limit, and when one raises, whatever it raises, the error
in one line with its file and line."""

from __future__ import annotations

import faulthandler
import importlib.util
import inspect
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Annotated, Any

from postrain.config.schema import Confirm, load_target
from postrain.errors import ConfigError, Interrupted

# Seconds after its limit that a function has to answer the signal; one that is deep in C code never does.
GRACE = 10.0


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

CODE_PATH = re.compile(r".*\.\w+:\w+|[^\W\d]\w*(\.[^\W\d]\w*)+")


def names_no_code(value: Any) -> bool:
    """Whether an argument cannot be the path of a function, or is that of a reward function of this package."""
    return not isinstance(value, str) or not CODE_PATH.fullmatch(value) or is_own(value)


Arguments = Mapping[str, Annotated[Any, Confirm("may name Python that the function runs", harmless=names_no_code)]]
"""Further keyword arguments of a function; `scorer` of postrain.rewards.shaping.cosine is the path of another one."""


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
    with UserCodeErrors(f"{key}: {file} cannot be imported:", str(spec.origin)):
        spec.loader.exec_module(module)
    return module


def source_location(function: Callable[..., Any]) -> tuple[str, int]:
    """File and line of a function; its type and 0 where it has no Python source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else (type(function).__qualname__, 0)


@dataclass(frozen=True)
class UserCodeErrors:
    """Turns whatever a user's code raises into one line: who, what, and where in its own file.

    A context manager, since nothing is swallowed: the line takes the error's place, with the error as its cause. That
    holds for sys.exit() and its like too, which would end the run as if all were well; only signals pass.
    """

    who: str
    file: str
    """The user's file; the deepest line in it is the one to tell."""
    culprit: Callable[[], str] = str
    """Says on what it happened; asked only when it has."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or isinstance(error, ConfigError | Interrupted):
            return
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        where = f" at {self.file}:{lines[-1]}" if lines else ""
        what = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
        # What ends processes or fills memory is not tried again on each prompt.
        again = isinstance(error, Exception) and not isinstance(error, MemoryError)
        raise ConfigError(f"{self.who} {what}{where}{self.culprit() if again else ''}") from error


class _TimeUp(BaseException):
    """Not an Exception, so that fewer functions swallow it."""


@contextmanager
def time_limit(seconds: float | None, who: str, file: str) -> Iterator[None]:
    """Raises ConfigError when the block takes longer, naming the line of the user's `file` it was at; None is no limit.

    A signal (SIGALRM) interrupts Python code and waiting; it comes again every second for code that swallows it. Code
    that hangs in C without looking at signals ends the process with exit code 1 and a traceback, after GRACE more
    seconds: nothing else can stop it.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(f"{who}: reward.timeout works in the main thread only; leave it null here")
    lines: list[int] = []

    def strike(number: int, frame: FrameType | None) -> None:
        own = [line for f, line in traceback.walk_stack(frame) if f.f_code.co_filename == file]
        lines.append(own[0] if own else 0)
        raise _TimeUp

    before = signal.signal(signal.SIGALRM, strike)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__ or 2)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    except _TimeUp:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    if lines:
        where = f" (at {file}:{lines[0]})" if lines[0] else ""
        raise ConfigError(f"{who} took longer than reward.timeout={seconds:g} seconds{where}; raise it, or mend it")
