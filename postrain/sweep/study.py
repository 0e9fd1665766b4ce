"""What a sweep's YAML says: the question, what varies, and what decides.

    question: How much reward does the KL coefficient cost, and how much drift does it save?
    base: [method=ppo]                                   overrides of every job
    grid: {method.kl_coef: [0.0, 0.1, 0.4]}              every combination; or
    jobs: {short: [method.updates=30], long: [...]}      settings by name; or
    search: {method.learning_rate: {low: 1e-5, high: 1e-3, log: true}}
    seeds: [0, 1, 2]
    metric: gold/total                                   direction: max or min, where the metric does not tell
    picture: {x: eval/kl/exact, y: eval/reward/total}

Leaves out composing the jobs: plan.py. `-m` without a file is a study too, of the lists on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from omegaconf import OmegaConf
from yaml import YAMLError

from postrain.check import check
from postrain.cli import SWEEP
from postrain.types import ConfigError, Count

BARE = re.compile(r"[A-Za-z0-9_./+-]+")
Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The axes of the frontier: metrics of a finished job. Without both the metric is drawn over what varies."""

    x: str | None = None
    y: str | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A sweep, as its YAML and the command line say."""

    question: str = ""
    base: tuple[str, ...] = ()
    """Overrides of every job."""
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    """Values by key; every combination is a job."""
    jobs: Mapping[str, list[str]] = field(default_factory=dict)
    """Overrides by the name of a setting."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """What Optuna chooses, by key: {low, high, log, step} or a list."""
    trials: Count = 20
    """Jobs of a search."""
    seeds: tuple[int, ...] | None = None
    """Each setting is run with each of them; null leaves the seed to the jobs."""
    metric: str | None = None
    """What decides; null is what each job's method is judged by."""
    direction: Direction | None = None
    columns: tuple[str, ...] = ()
    """Further metrics of the table."""
    picture: Picture = field(default_factory=Picture)


def read(swept: Sequence[str], root: Path) -> tuple[str, Study]:
    """The name and the study of what a command line says to a sweep; `root` holds the folder `sweep`."""
    name, node = "multirun", {}
    grid: dict[str, list[Any]] = {}
    settings: list[Override] = []
    for override in OverridesParser.create().parse_overrides(list(swept)):
        if override.key_or_group == SWEEP:
            name, node = _load(str(_plain(override.value())), root)
        elif override.key_or_group.startswith(f"{SWEEP}."):
            settings.append(override)
        else:
            grid[override.key_or_group] = [_parsed(text) for text in override.sweep_string_iterator()]
    for setting in settings:
        _set(node, setting.key_or_group.removeprefix(f"{SWEEP}."), _plain(setting.value()))
    check(node, Study)
    if "seed" in grid:
        node["seeds"] = grid.pop("seed")
        check({"seeds": node["seeds"]}, Study)
    if grid and node.get("search"):
        raise ConfigError(f"{min(grid)}: a search chooses values itself; say sweep.search.{min(grid)}=[...]")
    lists = {key: tuple(node[key]) for key in ("base", "seeds", "columns") if node.get(key) is not None}
    picture = Picture(**node.get("picture", {}))
    return name, Study(**{**node, **lists, "picture": picture, "grid": {**node.get("grid", {}), **grid}})


def _parsed(text: str) -> Any:
    (override,) = OverridesParser.create().parse_overrides([f"value={text}"])
    return _plain(override.value())


def _plain(value: Any) -> Any:
    return value.text if isinstance(value, QuotedString) else value


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    """Changes what the file says: `grid.method.kl_coef` is a key of grid, `picture.x` one of picture."""
    head, _, rest = key.partition(".")
    if rest:
        inner = node.get(head)
        node[head] = {**(inner if isinstance(inner, dict) else {}), rest: value}
    else:
        node[head] = value


def _load(name: str, root: Path) -> tuple[str, dict[str, Any]]:
    """A study's file: sweep/NAME.yaml, or the path of one."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else root / SWEEP / f"{name}.yaml"
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"sweep={name}: {path} cannot be read: {error.strerror}") from None
    except YAMLError as error:
        raise ConfigError(f"sweep={name}: {path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(node, dict):
        raise ConfigError(f"sweep={name}: {path}: expected keys such as question, base, grid, seeds")
    return path.stem, node


def word(key: str, value: Any) -> str:
    """An override in Hydra's grammar."""
    return f"{key}={said(value)}"


def said(value: Any) -> str:
    """A value in Hydra's grammar; texts that are not plain words are quoted."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{','.join(map(said, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{said(item)}" for key, item in value.items()) + "}"
    text = str(value)
    return text if BARE.fullmatch(text) or not isinstance(value, str) else "'" + text.replace("'", "\\'") + "'"
