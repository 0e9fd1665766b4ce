"""A user's conf/ in the working directory: searched before the built-in one; modules beside it can be imported.

It adds config groups. Its primary configs are ignored: conf/config.yaml may belong to another Hydra program.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from postrain.config import old_names, renamed
from postrain.config.paths import CONF, user_conf, user_folder
from postrain.config.yaml_file import TooLarge, check_size
from postrain.errors import ConfigError, one_line

REPORTED = "POSTRAIN_SHADOWED"
"""Environment variable, set after the note is printed so that jobs of this process do not repeat it."""


def replaced_options() -> Iterator[tuple[Path, list[str]]]:
    """The user's folders with the built-in options (GROUP/NAME) and studies (NAME) that each replaces."""
    for name, files in (("conf", "*/**/*.yaml"), ("sweep", "*.yaml")):
        own, built_in = user_folder(name), CONF.parent / name
        there = [file.relative_to(own) for file in sorted(own.glob(files))] if own else []
        names = [str(file.with_suffix("")) for file in there if (built_in / file).is_file()]
        if own and names:
            yield own, names


def use_user_conf() -> None:
    """Adds the user's conf/ to Hydra's search path and its folder to Python's; prints replaced options once."""
    Plugins.instance().register(UserGroups)
    Plugins.instance().register(UserConf)
    own = user_conf()
    if own is not None and str(own.parent) not in sys.path:
        sys.path.append(str(own.parent))
    if REPORTED not in os.environ:
        for folder, names in replaced_options():
            os.environ[REPORTED] = "1"
            print(f"note: {folder} replaces the built-in {', '.join(names)}", file=sys.stderr)


class UserGroups(ConfigSource):
    """Hydra's source of a folder of config files, without its primary configs."""

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        sources: Any = Plugins.instance().discover(ConfigSource)
        self.files = next(source for source in sources if source.scheme() == "file")(provider, self.path)

    @staticmethod
    def scheme() -> str:
        """The scheme of its paths."""
        return "postrain-user"

    def available(self) -> bool:
        """Whether the folder exists."""
        return self.files.available()

    def is_group(self, config_path: str) -> bool:
        """Whether the path is a folder, under its current or its old name."""
        return any(map(self.files.is_group, _names(config_path)))

    def is_config(self, config_path: str) -> bool:
        """Whether the path is an option of a group."""
        return "/" in config_path and any(map(self.files.is_config, _names(config_path)))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The groups and options in a folder."""
        folders = filter(self.files.is_group, _names(config_path))
        return sorted({name for folder in folders for name in self.files.list(folder, results_filter)})

    def load_config(self, config_path: str) -> ConfigResult:
        """Loads an option, with new names of groups, options and keys. Raises ConfigError: see `check_file`."""
        path = next(filter(self.files.is_config, _names(config_path)), config_path)
        if path != config_path:
            renamed.announce(f"conf/{path}", f"conf/{config_path}")
        file = Path(self.path) / f"{path.removesuffix('.yaml')}.yaml"
        if file.is_file():
            check_file(file)
        found = self.files.load_config(path)
        if isinstance(found.config, DictConfig):
            plain: Any = OmegaConf.to_container(found.config)
            package = found.header.get("package") or config_path.rpartition("/")[0]
            found.config = OmegaConf.create(_with_new_names(plain, path.rpartition("/")[0], package))
        return found


def _with_new_names(plain: dict[str, Any], group: str, package: str) -> dict[str, Any]:
    """The content of an option with new names, so that its keys override those of the options in its defaults list."""
    entries = plain.pop("defaults", None)
    whole = renamed.config(plain if package == "_global_" else {package: plain})
    if package != "_global_":
        # A key that moves out of the group stays: it gets its new name in the composed config.
        whole = whole[package] if whole.keys() == {package} else plain
    if entries is None:
        return whole
    return {"defaults": renamed.defaults(entries, group) if isinstance(entries, list) else entries, **whole}


def check_file(file: Path) -> None:
    """Raises ConfigError for mistakes of YAML, and for more values or levels than can be read."""
    try:
        text = file.read_text(encoding="utf-8")
        yaml.compose(text, Loader=yaml.SafeLoader)
        check_size(text)
    except TooLarge as error:
        raise ConfigError(f"{file}: {error}; write fewer values, or read them from a file") from None
    except RecursionError:
        raise ConfigError(f"{file}: it is nested too deep; write fewer levels") from None
    except yaml.MarkedYAMLError as error:
        at = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{file}{at}: {error.problem or error.context}; correct the YAML") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file} cannot be read: {one_line(error, limit=None)}") from None


def _names(path: str) -> list[str]:
    """A path in a folder of configs, and the same path with the old name of its group if it has one."""
    group, slash, option = path.partition("/")
    return [path, *(f"{old}{slash}{option}" for old in filter(None, [old_names.GROUPS.get(group)]))]


class UserConf(SearchPathPlugin):
    """Puts the user's groups before the built-in ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Hydra calls this for every search path that it creates."""
        own = user_conf()
        if own is not None:
            search_path.prepend("postrain-user", f"{UserGroups.scheme()}://{own}", anchor="main")
