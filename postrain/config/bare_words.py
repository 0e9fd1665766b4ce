"""Words of the command line without a key, such as a file or the name of a method: what to write instead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from postrain.config.groups import Groups
from postrain.config.override_text import format_override
from postrain.config.paths import MODULES, command, shell_line

EXAMPLE = "expected NAME=VALUE, as in seed=1"


def is_bare(token: str) -> bool:
    """Whether a word has no key; the path of a run folder may contain a `=`."""
    return "=" not in token or _exists(Path(token) / "manifest.json")


def remedy(token: str, known: Groups) -> str:
    """What was expected instead of a bare word, and what to write."""
    if _exists(Path(token) / "manifest.json"):
        return f"{EXAMPLE}; to use the run in it write model=run {_written('model.path', token)}"
    if token in (known.options("method") or ()):
        return f"{EXAMPLE}; write method={token}"
    if token == "train":
        return f"{EXAMPLE}; leave it out, it is the command already"
    if token in MODULES:
        return f"{EXAMPLE}; the command is {command(token)}"
    return f"{EXAMPLE}; to use the file write {_written('data.path', token)}" if _exists(Path(token)) else EXAMPLE


def rejoined(tokens: Sequence[str], *, multirun: bool) -> tuple[list[str], list[str]]:
    """The tokens without the values that a space has split, as in `data.path= my.jsonl` and `method=dpo, ppo`, and a
    message for each of these."""
    whole: list[str] = []
    messages: list[str] = []
    rest = [*tokens]
    while rest:
        first, *rest = rest
        parts = [first]
        while rest and "=" in first and parts[-1].endswith(("=", ",")) and "=" not in rest[0] and rest[0][:1] != "-":
            parts.append(rest.pop(0))
        if len(parts) == 1:
            whole.append(first)
            continue
        written = shell_line(["".join(parts)])
        if parts[0].endswith("="):
            messages.append(f"{' '.join(parts)}: no space after =; write {written}")
        else:
            several = "" if multirun or "[" in first or "{" in first else "several values need -m: -m "
            messages.append(f"{' '.join(parts)}: no space after a comma; {several or 'write '}{written}")
    return whole, messages


def _written(key: str, value: str) -> str:
    return shell_line([format_override(key, value)])


def _exists(file: Path) -> bool:
    try:
        return file.is_file()
    except (OSError, ValueError):
        return False
