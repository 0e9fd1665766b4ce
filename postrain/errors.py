"""Shared exceptions: a user's mistake and a signal. Imports no torch, so that a folder can be read without it."""

import argparse
import signal
from pathlib import Path
from typing import NoReturn


class ConfigError(ValueError):
    """A user's mistake: one line that names the key, file or line, what was expected, and what to do."""


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are ConfigErrors of one line."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help shows what there is")


class Interrupted(SystemExit):
    """Stop at once; ends the process with 128 + the signal's number, as a shell expects, when nobody catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.folder: Path | None = None
        """What was stopped and can be resumed: of a run, its pipeline and its sweep the outermost."""
