"""Functions that a user wrote: loading by path, time limits, and errors as one line with file and line number."""

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
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import FrameType, ModuleType, TracebackType
from typing import Annotated, Any, Self

from postrain.config.schema import Confirm, load_target
from postrain.errors import ConfigError, Interrupted, one_line
from postrain.suggestions import suggestion

_modules: dict[tuple[Path, int, int], ModuleType] = {}
_within_limit: ContextVar[bool] = ContextVar("within_limit", default=False)

# Seconds after the limit in which a function must react to the signal; C code may never react.
GRACE = 10.0


def is_builtin_reward(path: Any) -> bool:
    """Whether a path names a reward function of this package: a function that takes completions."""
    if not isinstance(path, str) or not path.startswith("postrain.rewards.") or ":" in path:
        return False
    try:
        function = load_target(path)
    except ConfigError:
        return False
    here = inspect.isfunction(function) and function.__module__.startswith("postrain.rewards.")
    return here and "completions" in inspect.signature(function).parameters


FunctionPath = Annotated[str, Confirm("runs this Python", harmless=is_builtin_reward)]
"""`package.module.name`, or `path/to/file.py:name`."""

CODE_PATH = re.compile(r".*\.\w+:\w+|[^\W\d]\w*(\.[^\W\d]\w*)+")


def is_harmless_argument(value: Any) -> bool:
    """Whether an argument is not the path of a function, or is that of a reward function of this package."""
    return not isinstance(value, str) or not CODE_PATH.fullmatch(value) or is_builtin_reward(value)


Arguments = Mapping[
    str, Annotated[Any, Confirm("may name Python that the function runs", harmless=is_harmless_argument)]
]
"""Further keyword arguments of a function; `scorer` of postrain.rewards.shaping.cosine is the path of another one."""


def load_function(path: str, key: str) -> Callable[..., Any]:
    """The function at `module.name` or `file.py:name`; `key` is the config key, for errors."""
    file, colon, name = path.rpartition(":")
    if not colon:
        return load_target(path)
    functions = vars(_module(Path(file), key))
    if not callable(functions.get(name)):
        meant = suggestion(name, [known for known, value in functions.items() if callable(value)])
        raise ConfigError(f"{key}={path}: {file} has no function {name}{meant}")
    return functions[name]


def _module(file: Path, key: str) -> ModuleType:
    """The module of a file, once for each version of it. As in a script, it may import the files beside it."""
    if not file.is_file():
        raise ConfigError(f"{key}: there is no file {file} (looked for {file.resolve()})")
    version = (file.resolve(), file.stat().st_mtime_ns, file.stat().st_size)
    if version in _modules:
        return _modules[version]
    spec = importlib.util.spec_from_file_location(_module_name(version[0]), file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{key}: {file} is not a Python file; expected path/to/file.py:name")
    module = importlib.util.module_from_spec(spec)
    # At the end: a file beside it does not replace an installed package.
    if (folder := str(version[0].parent)) not in sys.path:
        sys.path.append(folder)
    # Dataclasses, pickle and multiprocessing look a module up by its name.
    sys.modules[spec.name] = module
    try:
        with UserCodeErrors(f"{key}: {file} cannot be imported:", str(spec.origin)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise
    _modules[version] = module
    return module


def _module_name(file: Path) -> str:
    """The name of a file, made unique if another module has it."""
    found = sys.modules.get(file.stem) or (importlib.util.find_spec(file.stem) if file.stem.isidentifier() else None)
    origin = getattr(found, "__file__", None) or getattr(found, "origin", None)
    taken = found is not None and (origin is None or Path(origin).resolve() != file)
    return f"{file.stem}_{blake2b(bytes(file), digest_size=4).hexdigest()}" if taken else file.stem


def source_location(function: Callable[..., Any]) -> tuple[str, int]:
    """File and line of a function; its type and 0 if it has no Python source."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (code.co_filename, code.co_firstlineno) if code is not None else (type(function).__qualname__, 0)


@dataclass(frozen=True)
class UserCodeErrors:
    """Context manager that converts any error of user code to a one-line ConfigError with its file and line.

    The original error is the cause. sys.exit() is converted too, since it would end the run as a success; signals are
    not.
    """

    who: str
    file: str
    """The user's file; the deepest line in it is reported."""
    locate: Callable[[], str] = str
    """Describes the input that caused the error; called only after an error."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or isinstance(error, ConfigError | Interrupted):
            return
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.file]
        where = f" at {self.file}:{lines[-1]}" if lines else ""
        what = one_line(error, limit=None, with_type=True)
        # Code that exits or exhausts memory is not run again on each prompt.
        can_retry = isinstance(error, Exception) and not isinstance(error, MemoryError)
        raise ConfigError(f"{self.who} {what}{where}{self.locate() if can_retry else ''}") from error


class TimedOut(ConfigError):
    """A call exceeded its time limit."""

    @classmethod
    def of(cls, who: str, seconds: float, where: str = "") -> Self:
        """The error of a call of `who` that took longer than `seconds`."""
        return cls(
            f"{who} took longer than reward.timeout={seconds:g} seconds{where}; raise the limit, or fix the function"
        )


class _TimeLimitReached(BaseException):
    """Not an Exception, so that fewer functions swallow it."""


def within_time_limit() -> bool:
    """Whether the caller runs inside of `time_limit`, whose alarm another alarm would cancel."""
    return _within_limit.get()


@contextmanager
def time_limit(seconds: float | None, who: str, file: str) -> Iterator[None]:
    """Raises TimedOut if the block takes longer, with the current line in the user's `file`; None is no limit.

    SIGALRM interrupts Python code and waiting; it repeats every second for code that swallows it. If C code ignores
    signals, the process ends with exit code 1 and a traceback after GRACE more seconds.
    """
    if seconds is None:
        yield
        return
    if threading.current_thread() is not threading.main_thread():
        raise ConfigError(f"{who}: reward.timeout works in the main thread only; leave it null here")
    lines: list[int] = []

    def on_alarm(number: int, frame: FrameType | None) -> None:
        own = [line for f, line in traceback.walk_stack(frame) if f.f_code.co_filename == file]
        lines.append(own[0] if own else 0)
        raise _TimeLimitReached

    outside = _within_limit.set(True)
    before = signal.signal(signal.SIGALRM, on_alarm)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=sys.__stderr__ or 2)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    except _TimeLimitReached:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
        _within_limit.reset(outside)
    if lines:
        raise TimedOut.of(who, seconds, f" (at {file}:{lines[0]})" if lines[0] else "")
