"""Parses a typed line: a command or a message. Leaves out executing commands (terminal.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches

from postrain.errors import ConfigError

COMMANDS: Mapping[str, tuple[str, str]] = {
    "reset": ("", "clear the conversation"),
    "undo": ("", "remove the last question and its answer"),
    "system": ("TEXT", "set the system message; without TEXT remove it"),
    "temperature": ("NUMBER", "0 always takes the likeliest word"),
    "help": ("", "this list"),
    "quit": ("", "or Ctrl-D, or Ctrl-C"),
}
"""By name: its argument, and what it does."""


@dataclass(frozen=True)
class Command:
    """Something to do."""

    name: str
    argument: str = ""


def parse(line: str) -> Command | str:
    """What a line asks for; a text that begins with a slash is written with two."""
    if not line.startswith("/"):
        return line
    if line.startswith("//"):
        return line[1:]
    name, _, argument = line[1:].strip().partition(" ")
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        meant = f"did you mean /{near[0]}?" if near else f"there is {', '.join('/' + known for known in COMMANDS)}"
        raise ConfigError(f"/{name}: no such command; {meant}")
    wanted, argument = COMMANDS[name][0], argument.strip()
    if argument and not wanted:
        raise ConfigError(f"/{name}: expected no argument, got {argument!r}")
    return Command(name, argument)


def temperature(text: str) -> float:
    """The number behind /temperature."""
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"/temperature {text}: expected a number, as in /temperature 0.7") from None


def overview() -> str:
    """All commands, a line each."""
    rows = [(f"/{name} {argument}".rstrip(), about) for name, (argument, about) in COMMANDS.items()]
    width = max(len(form) for form, _ in rows)
    return "\n".join(f"{form:<{width}}  {about}" for form, about in rows)
