"""Parses a typed line: a command or a message. Leaves out executing commands (terminal.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from postrain.errors import ConfigError
from postrain.suggestions import did_you_mean

COMMANDS: Mapping[str, tuple[str, str]] = {
    "reset": ("", "clear the conversation"),
    "undo": ("", "remove the last question and its answer"),
    "system": ("TEXT", "set the system message; without TEXT remove it"),
    "result": ("TEXT", "the result of a call of the last answer, for a chat with --tools"),
    "temperature": ("NUMBER", "sampling temperature; 0 is greedy"),
    "help": ("", "this list"),
    "quit": ("", "or Ctrl-D, or Ctrl-C"),
}
"""Argument and description of each command."""


@dataclass(frozen=True)
class Command:
    """A parsed command."""

    name: str
    argument: str = ""


def parse(line: str) -> Command | str:
    """The command or message of a line; `//` begins a message with a slash. Raises ConfigError for a wrong command."""
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    name, _, argument = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        available = f"available: {', '.join('/' + known for known in COMMANDS)}"
        meant = did_you_mean(name, COMMANDS, available, prefix="/")
        raise ConfigError(f"/{name}: no such command; {meant}")
    wanted, argument = COMMANDS[name][0], argument.strip()
    if argument and not wanted:
        raise ConfigError(f"/{name}: expected no argument, got {argument!r}")
    return Command(name, argument)


def temperature(text: str) -> float:
    """The argument of /temperature as a number."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"/temperature {text}: expected a number, as in /temperature 0.7") from None


def overview() -> str:
    """A line for each command."""
    rows = [(f"/{name} {argument}".rstrip(), about) for name, (argument, about) in COMMANDS.items()]
    width = max(len(form) for form, _ in rows)
    return "\n".join(f"{form:<{width}}  {about}" for form, about in rows)
