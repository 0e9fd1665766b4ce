"""A user's own conf/ in the working directory: searched before the built-in one, modules beside it can be imported."""

from __future__ import annotations

import os
import sys

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin

from postrain.config.places import CONF, user_conf

NOTED = "POSTRAIN_SHADOWED"
"""Set once the shadowed options were named, for the jobs that this process starts."""


def shadowed() -> list[str]:
    """The built-in options that the user's conf/ replaces, as GROUP/NAME."""
    own = user_conf()
    files = [file.relative_to(own) for file in sorted(own.rglob("*.yaml"))] if own else []
    return [str(file.with_suffix("")) for file in files if (CONF / file).is_file()]


def use_user_conf() -> None:
    """Adds the user's conf/ to Hydra's search path and its modules to Python's; names what it shadows once."""
    Plugins.instance().register(UserConf)
    own = user_conf()
    if own is None:
        return
    if str(own.parent) not in sys.path:
        sys.path.append(str(own.parent))
    names = shadowed()
    if names and NOTED not in os.environ:
        os.environ[NOTED] = "1"
        print(f"note: {own} replaces the built-in {', '.join(names)}", file=sys.stderr)


class UserConf(SearchPathPlugin):
    """Puts the user's conf/ before the built-in one."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this for every search path it makes."""
        own = user_conf()
        if own is not None:
            search_path.prepend("postrain-user", f"file://{own}", anchor="main")
