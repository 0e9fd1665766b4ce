"""Folders of config groups and studies, and the commands that start postrain, in a checkout or when installed.

A user's `conf/` and `sweep/` in the working directory are searched before the built-in ones (cli/user_conf.py).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IN_CHECKOUT = not (PACKAGE / "conf").is_dir()
CONF = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "conf"
"""The built-in config groups; the built-in studies are in sweep/ beside it."""
MODULES = {
    "evaluate": "postrain.evaluate",
    "generate": "postrain.generate",
    "stress": "postrain.stress",
    "explain": "postrain.cli.explain",
    "probe": "postrain.cli.probe",
    "chat": "postrain.cli.chat",
    "merge": "postrain.cli.merge",
    "export": "postrain.cli.export",
    "report": "postrain.report",
    "verify": "postrain.cli.verify",
    "why": "postrain.cli.why",
    "world": "postrain.world",
}
"""The modules of sub-commands other than train and help."""

LIST_METRICS = "python -m postrain.metrics"
"""Prints every metric; the same in a checkout and outside."""


def command(name: str) -> str:
    """The shell command for the sub-command `name`."""
    if not IN_CHECKOUT:
        return f"postrain {name}"
    return "python train.py" if name == "train" else f"python -m {MODULES[name]}"


def user_conf() -> Path | None:
    """The user's config groups: conf/ in the working directory; None without such a folder."""
    return user_folder("conf")


def user_folder(name: str) -> Path | None:
    """The folder `name` in the working directory; None if it does not exist or is the built-in one."""
    folder = Path.cwd() / name
    return folder if folder.is_dir() and folder.resolve() != (CONF.parent / name).resolve() else None


def config_dirs() -> tuple[Path, ...]:
    """All directories of config groups, in search order."""
    own = user_conf()
    return (CONF,) if own is None else (own, CONF)


def study_dirs(root: Path) -> tuple[Path, ...]:
    """All directories of studies, in search order; the built-in one is sweep/ in `root`."""
    own = user_folder("sweep")
    return (root / "sweep",) if own is None else (own, root / "sweep")


def shell_line(words: Iterable[str]) -> str:
    """Words as a command line; in double quotes where possible, because Hydra's grammar has single quotes in values."""
    return " ".join(
        f'"{word}"' if "'" in word and not set('"$`\\!') & set(word) else shlex.quote(word) for word in words
    )
