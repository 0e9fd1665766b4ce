"""Where the config groups lie, and what starts postrain here: in a checkout, or installed from a wheel.

A user's own `conf/` and `sweep/` in the working directory are searched before the built-in ones: cli/user_conf.py.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IN_CHECKOUT = not (PACKAGE / "conf").is_dir()
CONF = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "conf"
"""The built-in config groups; studies lie beside them in sweep/."""
MODULES = {
    "evaluate": "postrain.evaluate",
    "generate": "postrain.generate",
    "chat": "postrain.cli.chat",
    "report": "postrain.report",
    "world": "postrain.world",
}
"""What runs the sub-commands that have a module of their own."""


def command(name: str) -> str:
    """What a user types for the sub-command `name`."""
    if not IN_CHECKOUT:
        return f"postrain {name}"
    return "python train.py" if name == "train" else f"python -m {MODULES[name]}"


def user_conf() -> Path | None:
    """The user's own config groups: conf/ in the working directory."""
    return user_folder("conf")


def user_folder(name: str) -> Path | None:
    """`name` in the working directory, where it is not the built-in one."""
    folder = Path.cwd() / name
    return folder if folder.is_dir() and folder.resolve() != (CONF.parent / name).resolve() else None


def config_dirs() -> tuple[Path, ...]:
    """All directories of config groups, the first to be searched first."""
    own = user_conf()
    return (CONF,) if own is None else (own, CONF)


def study_dirs(root: Path) -> tuple[Path, ...]:
    """All directories of studies, the first to be searched first; the built-in one is sweep/ in `root`."""
    own = user_folder("sweep")
    return (root / "sweep",) if own is None else (own, root / "sweep")
