"""Commands that resume a run folder, as messages print them: complete, and quoted for a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from postrain.config.masking import masked_text
from postrain.config.override_text import format_override, parse_value
from postrain.config.overrides import PROGRAMS
from postrain.config.paths import shell_line
from postrain.errors import ConfigError

RESUME = re.compile(r"""(?<![\w.'])(?:resume=[^\s;,:'"]+|"resume='[^"]+'"|'resume=[^']+')""")
"""resume=FOLDER in a message, quoted for a shell."""


def resume_hint(config_name: str, folder: Path, argv: Sequence[str]) -> str:
    """The last line of an interrupted command."""
    if config_name in ("evaluate", "stress"):
        return "an evaluation cannot be resumed; start it again"
    # sweep.yaml does not record the launcher.
    launched = [word for word in argv if word.startswith("hydra")] if (folder / "sweep.yaml").is_file() else []
    return masked_text(
        f"resume with: {PROGRAMS[config_name]} {resume_overrides(folder)} {shell_line(launched)}".rstrip()
    )


def resume_overrides(folder: Path) -> str:
    """resume=FOLDER and the overrides that must be repeated with it, quoted for a shell."""
    from postrain.cli.confirmations import confirmations  # noqa: PLC0415 - start-up time

    return shell_line([format_override("resume", str(folder)), *confirmations(folder)])


def with_full_resume_commands(message: str) -> str:
    """A message in which each resume=FOLDER is followed by the overrides that must be repeated."""
    return RESUME.sub(lambda found: _completed(found[0]), message)


def _completed(word: str) -> str:
    """resume=FOLDER of a message with the overrides that must be repeated; unchanged if there is no such folder."""
    try:
        folder = Path(str(parse_value(shlex.split(word)[0].partition("=")[2])))
    except ConfigError:
        return word
    return resume_overrides(folder) if folder.is_dir() else word
