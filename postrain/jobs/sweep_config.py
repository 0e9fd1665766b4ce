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
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from postrain.config.arguments import composing
from postrain.config.check import check
from postrain.config.overrides import SWEEP
from postrain.config.schema import Section
from postrain.types import ConfigError, Count

BARE = re.compile(r"[A-Za-z0-9_./+-]+")
Direction = Literal["max", "min"]


@dataclass(frozen=True, kw_only=True)
class Picture(Section):
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


def read(
    swept: Sequence[str], shared: Sequence[str], root: Path, saved: Path | None = None
) -> tuple[str, Study, list[str]]:
    """The name of a sweep, its study, and the words that all jobs share.

    `swept` is what the command line says to the sweep, `shared` what it says to all jobs: a single value there takes
    the place of what the study varies. `root` holds the folder `sweep`, `saved` is an earlier session's sweep.yaml.
    """
    name, node = ("multirun", {}) if saved is None else _saved(saved)
    grid: dict[str, list[Any]] = {}
    settings: list[Override] = []
    for override in _overrides(swept):
        key = override.key_or_group
        if key == SWEEP and saved is None:
            name, node = _load(override, root)
        elif key.startswith(f"{SWEEP}."):
            settings.append(override)
        elif key != SWEEP:
            grid[key] = _values(override)
    for setting in settings:
        _set(node, setting.key_or_group.removeprefix(f"{SWEEP}."), _plain(setting.value()))
    check(node, Study)
    varied = {*node.get("grid", {}), *node.get("search", {}), *grid, *(["seed"] if node.get("seeds") else [])}
    for override in _overrides(shared):
        if override.key_or_group in varied:
            grid[override.key_or_group] = [_plain(override.value())]
    if "seed" in grid:
        node["seeds"] = grid.pop("seed")
        check({"seeds": node["seeds"]}, Study)
    node["search"] = {key: said for key, said in node.get("search", {}).items() if key not in grid}
    lists = {key: tuple(node[key]) for key in ("base", "seeds", "columns") if node.get(key) is not None}
    node["grid"] = {**node.get("grid", {}), **grid}
    _refuse_nothing(node)
    study = Study(**{**node, **lists, "picture": Picture(**node.get("picture", {}))})
    return name, study, [word for word in shared if word.lstrip("+").partition("=")[0] not in varied]


def _refuse_nothing(node: Mapping[str, Any]) -> None:
    empty = [f"sweep.grid.{key}" for key, values in node["grid"].items() if not values]
    empty += ["sweep.seeds"] if node.get("seeds") is not None and not node["seeds"] else []
    if empty:
        raise ConfigError(f"{empty[0]}: expected at least one value; without any there is no job")


def _overrides(words: Sequence[str]) -> list[Override]:
    with composing():
        return OverridesParser.create().parse_overrides(list(words))


def _values(override: Override) -> list[Any]:
    """What a list on the command line holds."""
    if not override.is_discrete_sweep() or isinstance(override.value(), Glob):
        raise ConfigError(f"{override.input_line}: expected the values themselves, as in {override.key_or_group}=a,b")
    return [_parsed(text) for text in override.sweep_string_iterator()]


def _parsed(text: str) -> Any:
    (override,) = _overrides([f"value={text}"])
    return _plain(override.value())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(item) for key, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    """Changes what the file says: `grid.method.kl_coef` is a key of grid, `picture.x` one of picture."""
    head, _, rest = key.partition(".")
    if rest:
        inner = node.get(head)
        node[head] = {**(inner if isinstance(inner, dict) else {}), rest: value}
    else:
        node[head] = value


def _load(override: Override, root: Path) -> tuple[str, dict[str, Any]]:
    """A study's file: sweep/NAME.yaml, or the path of one."""
    name = _plain(override.value())
    if not isinstance(name, str):
        raise ConfigError(f"{(override.input_line or '').lstrip('+')}: expected one study; start a sweep for each")
    path = Path(name) if name.endswith((".yaml", ".yml")) else root / SWEEP / f"{name}.yaml"
    return path.stem, _node(path, f"sweep={name}")


def _saved(path: Path) -> tuple[str, dict[str, Any]]:
    """The study as an earlier session has recorded it: its file may have changed since, or be gone."""
    node = _node(path, "resume")
    known = {each.name for each in fields(Study)}
    return str(node.get("name", "multirun")), {key: value for key, value in node.items() if key in known}


def _node(path: Path, key: str) -> dict[str, Any]:
    try:
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror or error}") from None
    except (YAMLError, ValueError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{key}: {path} is no YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(node, dict):
        raise ConfigError(f"{key}: {path}: expected keys such as question, base, grid, seeds")
    return node


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
    if not isinstance(value, str):
        return str(value)
    plain = BARE.fullmatch(value) and _parsed(value) == value
    return value if plain else "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", value).replace("'", "\\'") + "'"
