"""Where the config groups lie, and what starts postrain here: in a checkout, or installed from a wheel.

A user's own `conf/` in the working directory is searched before the built-in one: cli/user_conf.py.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parents[1]
IN_CHECKOUT = not (PACKAGE / "conf").is_dir()
CONF = (PACKAGE.parent if IN_CHECKOUT else PACKAGE) / "conf"
"""The built-in config groups; studies lie beside them in sweep/."""


def command(name: str) -> str:
    """What a user types for the sub-command `name`."""
    if not IN_CHECKOUT:
        return f"postrain {name}"
    return "python train.py" if name == "train" else f"python -m postrain.{name}"


def user_conf() -> Path | None:
    """The user's own config groups: conf/ in the working directory."""
    conf = Path.cwd() / "conf"
    return conf if conf.is_dir() and conf.resolve() != CONF.resolve() else None


def config_dirs() -> tuple[Path, ...]:
    """All directories of config groups, the first to be searched first."""
    own = user_conf()
    return (CONF,) if own is None else (own, CONF)
