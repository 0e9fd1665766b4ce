"""A user's own conf/ in the working directory: searched before the built-in one, modules beside it can be imported.

It adds config groups. Its primary configs are left out: conf/config.yaml may be that of another Hydra program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin

from postrain.config.paths import CONF, user_conf, user_folder

NOTED = "POSTRAIN_SHADOWED"
"""Set once the shadowed options were named, for the jobs that this process starts."""


def shadowed() -> Iterator[tuple[Path, list[str]]]:
    """The user's folders and what of the built-in ones each replaces: options as GROUP/NAME, studies by name."""
    for name, files in (("conf", "*/**/*.yaml"), ("sweep", "*.yaml")):
        own, built_in = user_folder(name), CONF.parent / name
        there = [file.relative_to(own) for file in sorted(own.glob(files))] if own else []
        names = [str(file.with_suffix("")) for file in there if (built_in / file).is_file()]
        if own and names:
            yield own, names


def use_user_conf() -> None:
    """Adds the user's conf/ to Hydra's search path and its modules to Python's; names what it shadows once."""
    Plugins.instance().register(UserGroups)
    Plugins.instance().register(UserConf)
    own = user_conf()
    if own is not None and str(own.parent) not in sys.path:
        sys.path.append(str(own.parent))
    if NOTED not in os.environ:
        for folder, names in shadowed():
            os.environ[NOTED] = "1"
            print(f"note: {folder} replaces the built-in {', '.join(names)}", file=sys.stderr)


class UserGroups(ConfigSource):
    """The groups of a folder of configs: its files as Hydra reads them, without the primary configs."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        sources: Any = Plugins.instance().discover(ConfigSource)
        self.files = next(source for source in sources if source.scheme() == "file")(provider, self.path)

    @staticmethod
    def scheme() -> str:
        """What its paths begin with."""
        return "postrain-user"

    def available(self) -> bool:
        """Whether the folder is there."""
        return self.files.available()

    def is_group(self, config_path: str) -> bool:
        """Whether this is a folder."""
        return self.files.is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Whether this is an option of a group."""
        return "/" in config_path and self.files.is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The groups and options in a folder."""
        return self.files.list(config_path, results_filter)

    def load_config(self, config_path: str) -> ConfigResult:
        """An option."""
        return self.files.load_config(config_path)


class UserConf(SearchPathPlugin):
    """Puts the user's groups before the built-in ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this for every search path it makes."""
        own = user_conf()
        if own is not None:
            search_path.prepend("postrain-user", f"{UserGroups.scheme()}://{own}", anchor="main")
