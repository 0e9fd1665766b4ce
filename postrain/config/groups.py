"""The available config groups and options: of conf/, of the user, of --config-dir and of Hydra."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

from postrain.config import old_names
from postrain.config.arguments import parse
from postrain.config.paths import study_dirs, user_conf
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError

SWEEP = "sweep"
"""Prefix of overrides for the sweep itself, which are not passed to its jobs: sweep=NAME, sweep.KEY=VALUE."""

NESTED: Mapping[str, tuple[str, ...]] = {"experiment": ("recipe", "paper")}
"""The groups with options in folders, as in experiment=recipe/NAME, and these folders."""


def listing_of_named_groups(argv: Sequence[str], conf: Path) -> str | None:
    """The options of each group named without a value, as in `train.py method`; None if there is no such group."""
    groups = groups_of(conf, None)
    named = [word for word in parse(argv).overrides if word.isidentifier() and groups.options(word)]
    return "\n\n".join(listing(conf, group) for group in named) or None


def overview(argv: Sequence[str], conf: Path, config_name: str) -> str:
    """A line for each group of a program with its options. Hydra's own list would contain every folder."""
    groups = groups_of(conf, parse(argv).config_dir)
    return "\n".join(
        f"{group}: {', '.join(groups.options(group))}" for group in sorted(groups_in_defaults(conf, config_name))
    )


def listing(conf: Path, group: str) -> str:
    """A line for each option of a group: its name and the first comment of its YAML."""
    names = groups_of(conf, None).options(group)
    width = max(len(name) for name in names)
    return "\n".join([f"{group}=", *(f"  {name:<{width}}  {_comment(conf, group, name)}" for name in names)])


def _comment(conf: Path, group: str, name: str) -> str:
    roots = [root for root in (user_conf(), conf) if root]
    names = filter(None, (group, old_names.GROUPS.get(group)))
    folders = study_dirs(conf.parent) if group == SWEEP else [root / each for each in names for root in roots]
    files = (folder / f"{name}.yaml" for folder in folders)
    path = next((file for file in files if file.is_file()), None)
    if path is None:  # an option of Hydra
        return ""
    lines = path.read_text(encoding="utf-8").splitlines()
    first = next((line for line in lines if not line.startswith("# @package")), "")
    return first.removeprefix("#").strip() if first.startswith("#") else ""


class Groups:
    """The config groups of conf/, of the user, of --config-dir and of Hydra, and `sweep`."""

    def __init__(self, conf: Path, extra: str | None) -> None:
        for group, old in old_names.GROUPS.items() if extra else ():
            if (Path(str(extra)) / old).is_dir():
                raise ConfigError(f"--config-dir: the group {old} is now {group}; rename the folder {old} in {extra}")
        self.sources = [*_sources(conf, extra)]
        self.sweeps = {file.stem for folder in study_dirs(conf.parent) for file in folder.glob("*.yaml")}
        self.options = cache(self._options)

    def names(self) -> list[str]:
        """The groups with options, except Hydra's."""
        found = {name for source in self.sources for name in source.get_group_options("", ObjectType.GROUP)} | {SWEEP}
        return [name for name in sorted(found) if name != "hydra" and self.options(name)]

    def _options(self, group: str) -> tuple[str, ...]:
        found = {name for source in self.sources for name in source.get_group_options(group, ObjectType.CONFIG)}
        for folder in NESTED.get(group, ()):
            inside = f"{group}/{folder}"
            nested = [name for source in self.sources for name in source.get_group_options(inside, ObjectType.CONFIG)]
            found |= {f"{folder}/{name}" for name in nested}
        return tuple(sorted(found | self.sweeps if group == SWEEP else found))


def _sources(conf: Path, extra: str | None) -> Iterator[IConfigRepository]:
    """The repositories that list options: in a Hydra job that of Hydra, before it starts one for each folder.

    `ConfigLoader.get_group_options` lists the same, but copies the repository for each group (11 ms).
    """
    if GlobalHydra.instance().is_initialized():
        yield _repository()
        return
    for folder in filter(None, (conf, extra)):
        with initialize_config_dir(str(Path(folder).resolve()), version_base="1.3"):
            yield _repository()


def _repository() -> IConfigRepository:
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    return loader.repository


@cache
def groups_of(conf: Path, extra: str | None) -> Groups:
    """The groups, cached because searching for options is slow."""
    return Groups(conf, extra)


def groups_in_defaults(conf: Path, root: str) -> frozenset[str]:
    """The groups in the defaults list of a primary config."""
    items = primary_config(conf, root).get("defaults", [])
    keys = (str(key) for item in items if not isinstance(item, str) for key in item)
    return frozenset(key for key in keys if not key.startswith(("override ", "optional ")))


@cache
def primary_config(conf: Path, root: str) -> dict[str, Any]:
    """The content of the file of a primary config, not composed."""
    file = conf / f"{root}.yaml"
    return load_yaml(file) if file.is_file() else {}
