"""Shared exceptions: a user's mistake and a signal. Does not import torch: run folders can be read without it."""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn


class ConfigError(ValueError):
    """A user's mistake: one line that names the key, file or line, what was expected, and what to do."""


def one_line(error: BaseException, limit: int | None = 200, *, with_type: bool = False) -> str:
    """The message of an error on one line of at most `limit` characters, for a ConfigError; its type if it has none.

    `with_type` puts the type before the message.
    """
    name, text = type(error).__name__, " ".join(str(error).split())[:limit]
    return f"{name}: {text}" if with_type and text else text or name


@contextmanager
def as_config_error(what: str) -> Iterator[None]:
    """Turns any exception of a library for invalid model files into a one-line ConfigError that begins with `what`."""
    try:
        yield
    except ConfigError:
        raise
    # All types: for an invalid field transformers raises KeyError and TypeError, tokenizers a bare Exception.
    except Exception as error:
        raise ConfigError(f"{what}: {one_line(error, 300)}") from error


def print_error(error: ConfigError | str) -> int:
    """Prints a user's mistake on stderr; returns the exit code, 2."""
    print(f"error: {error}", file=sys.stderr)
    return 2


def ignore_closed_pipe() -> int:
    """Ignores that the reader of stdout has closed it, as in `postrain help | head`; returns the exit code."""
    # Flushing the buffer at exit must not raise again.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class RowError(ConfigError):
    """A mistake in a row of the data, named by its number; readers of a table name the file and line instead."""

    def __init__(self, row: int, problem: str) -> None:
        super().__init__(f"row {row}: {problem}")
        self.row, self.problem = row, problem


class MissingColumn(ConfigError):
    """A reward reads a column that the data does not have."""


class RefusedRun(ConfigError):
    """A run that its checks refuse before its first update: nothing in its folder is worth keeping."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises mistakes as one-line ConfigErrors, and takes arguments before and after options."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - overloads
        """Also for `why RUN --update 2 KEY=VALUE`, in which `argparse` takes KEY=VALUE for unknown."""
        found, unknown = self.parse_known_args(args, namespace)
        return self.parse_intermixed_args(args, namespace) if unknown else found

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists the options")


class Interrupted(SystemExit):
    """A signal stopped the run. If uncaught, the process exits with 128 + the signal's number, as a shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.folder: Path | None = None
        """The folder to resume: that of the run, or of the pipeline or sweep that contains it."""
