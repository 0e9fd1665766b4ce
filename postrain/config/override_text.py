"""Overrides as text in Hydra's grammar, and commands that contain them, quoted for a shell.

A path with a blank, `=` or a letter outside ASCII needs quotes of Hydra inside the quotes of the shell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from postrain.config.paths import command, shell_line

BARE = re.compile(r"[A-Za-z0-9_./+-]+")


def parse_value(text: str) -> Any:
    """Parses a value in Hydra's grammar; the inverse of `format_value`."""
    # Imported here: reports print the commands of folders without loading Hydra.
    from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: PLC0415

    from postrain.config.arguments import composition_errors  # noqa: PLC0415
    from postrain.config.trust import plain_value  # noqa: PLC0415

    with composition_errors():
        (override,) = OverridesParser.create().parse_overrides([f"value={text}"])
    return plain_value(override.value())


def key_of(override: str) -> str:
    """The key that an override sets, adds or deletes."""
    return override.lstrip("+~").partition("=")[0]


def format_override(key: str, value: Any) -> str:
    """An override in Hydra's grammar."""
    return f"{key}={format_value(value)}"


def format_overrides(values: Mapping[str, Any]) -> tuple[str, ...]:
    """An override for each key."""
    return tuple(format_override(key, value) for key, value in values.items())


def format_value(value: Any) -> str:
    """A value in Hydra's grammar; texts that are not plain words are quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{format_value(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    # No number or constant has a slash.
    plain = BARE.fullmatch(value) and ("/" in value or parse_value(value) == value)
    return value if plain else "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'") + "'"


def resume_command(program: str, folder: Path) -> str:
    """The command that resumes `folder`, such as `python train.py resume=runs/x`, quoted for a shell."""
    return f"{command(program)} {resume_word(folder)}"


def resume_word(folder: Path) -> str:
    """resume=FOLDER, quoted for a shell."""
    return shell_line([format_override("resume", str(folder))])
