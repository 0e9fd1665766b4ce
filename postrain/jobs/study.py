"""Reads a study, the definition of a sweep, from its YAML and command line: question, varied keys, metric.

    question: How much reward does the KL penalty cost, and how much KL to the reference policy does it save?
    base: [method=ppo]                                   overrides of every job
    grid: {method.kl_coef: [0.0, 0.1, 0.4]}              all combinations; or
    jobs: {short: [method.updates=30], long: [...]}      settings by name; or
    search: {method.learning_rate: {low: 1e-5, high: 1e-3, log: true}}
    seeds: [0, 1, 2]                                     sequential: {max_seeds: 12} adds seeds until decided
    metric: gold/total                                   direction: max or min, if the metric has no default
    plot: {x: eval/kl/exact, y: eval/reward/total}

`-m` without a file defines a study by the lists on the command line. Leaves out composing the jobs (plan.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from postrain.config import renamed
from postrain.config.arguments import composition_errors
from postrain.config.check import check
from postrain.config.groups import SWEEP
from postrain.config.override_text import format_override, format_overrides, key_of, parse_value
from postrain.config.paths import study_dirs
from postrain.config.schema import Section
from postrain.config.trust import plain_value
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError, one_line
from postrain.metrics import Direction
from postrain.report.sequential import Sequential
from postrain.types import Count, Fraction

# The key that holds the name of a setting of `jobs`.
NAMED = "setting"
UPDATES = "method.updates"


@dataclass(frozen=True, kw_only=True)
class Plot(Section):
    """Axes of the sweep's plot: metrics of finished jobs. By default the metric is plotted over the varied key."""

    x: str | None = None
    y: str | None = None


@dataclass(frozen=True, kw_only=True)
class Halving(Section):
    """Trains all settings for a few updates, and only the best of them for more."""

    updates: tuple[Count, ...] = ()
    """Updates at which settings are compared, increasing; the last is that of a whole run. Empty trains all settings as
    their configs say. Learning rates that follow a schedule follow that of each part: method.schedule=constant makes
    the parts one run."""
    keep: Fraction = 0.5
    """Share of the settings that continue, rounded up."""


@dataclass(frozen=True, kw_only=True)
class Study(Section):
    """The definition of a sweep by its YAML and the command line."""

    question: str = ""
    base: tuple[str, ...] = ()
    """Overrides of every job."""
    grid: Mapping[str, list[Any]] = field(default_factory=dict)
    """Values by key; each combination is a setting."""
    jobs: Mapping[str, list[str]] = field(default_factory=dict)
    """Overrides by the name of a setting."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """Search space of Optuna, by key: {low, high, log, step} or a list of choices."""
    trials: Count = 20
    """Number of settings that a search tries."""
    seeds: tuple[int, ...] | None = None
    """Seeds; each setting runs once with each. null keeps the seed of the jobs' configs."""
    sequential: Sequential = field(default_factory=Sequential)
    """Adds further seeds after these until the settings are told apart."""
    halving: Halving = field(default_factory=Halving)
    """Trains only the best settings for all updates."""
    metric: str | None = None
    """Metric that compares the settings; null selects the metric of each job's method."""
    direction: Direction | None = None
    columns: tuple[str, ...] = ()
    """Further metrics shown in the table."""
    plot: Plot = field(default_factory=Plot)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A point of a study, compared with others by its mean over seeds."""

    values: Mapping[str, Any]
    """The varied values, by key; the name of a setting of `jobs` has the key NAMED."""
    overrides: tuple[str, ...]

    @property
    def label(self) -> str:
        """See `label_of`."""
        return label_of(self.values)


def label_of(values: Mapping[str, Any]) -> str:
    """kl_coef=0.1 batch_size=8; keys are shortened, a name in `jobs` has no key."""
    pairs = zip(short(values), values.values(), strict=True)
    return " ".join(str(value) if key == NAMED else format_override(key, value) for key, value in pairs)


def settings(study: Study) -> Iterator[Setting]:
    """Every combination of the grid with every named setting, in the order of the file."""
    named = study.jobs or {None: []}
    for (name, overrides), values in itertools.product(named.items(), itertools.product(*study.grid.values())):
        chosen = dict(zip(study.grid, values, strict=True))
        known = {NAMED: name} if name is not None else {}
        yield Setting(values=known | chosen, overrides=(*overrides, *format_overrides(chosen)))


def short(keys: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Keys shortened to the fewest last parts that keep them distinct."""
    whole = [key.split(".") for key in keys]

    def unique(parts: list[str], size: int) -> bool:
        return size == len(parts) or sum(other[-size:] == parts[-size:] for other in whole) == 1

    sizes = [next(size for size in range(1, len(parts) + 1) if unique(parts, size)) for parts in whole]
    return [".".join(parts[-size:]) for parts, size in zip(whole, sizes, strict=True)]


def read(
    swept: Sequence[str], shared: Sequence[str], root: Path, saved: Path | None = None
) -> tuple[str, Study, list[str]]:
    """The name of a sweep, its study, and the overrides that all jobs share.

    `swept` are the overrides for the sweep itself, `shared` those for all jobs: a single value there replaces the
    values that the study lists. `root` holds the folder `sweep`, `saved` is the sweep.yaml of an earlier session.
    """
    name, node = ("multirun", {}) if saved is None else _saved(saved)
    grid: dict[str, list[Any]] = {}
    own: list[Override] = []
    for each in _parse(swept):
        key = each.key_or_group
        if key == SWEEP and saved is None:
            name, node = _load(each, root)
        elif key.startswith(f"{SWEEP}."):
            own.append(each)
        elif key != SWEEP:
            grid[key] = _values(each)
    for each in own:
        _set(node, each.key_or_group.removeprefix(f"{SWEEP}."), plain_value(each.value()))
    node = renamed.study(node)
    check({SWEEP: node}, StudyKeys)
    varied = {*node.get("grid", {}), *node.get("search", {}), *grid, *(["seed"] if node.get("seeds") else [])}
    for each in _parse(shared):
        if each.key_or_group in varied:
            grid[each.key_or_group] = [plain_value(each.value())]
    if "seed" in grid:
        node["seeds"] = grid.pop("seed")
        check({SWEEP: {"seeds": node["seeds"]}}, StudyKeys)
    node["search"] = {key: space for key, space in node.get("search", {}).items() if key not in grid}
    lists = {key: tuple(node[key]) for key in ("base", "seeds", "columns") if node.get(key) is not None}
    node["grid"] = {**node.get("grid", {}), **grid}
    _refuse_empty(node)
    sections = {"plot": Plot(**node.get("plot", {})), "sequential": Sequential(**node.get("sequential", {}))}
    rungs = node.get("halving", {})
    sections["halving"] = Halving(**{**rungs, "updates": tuple(rungs.get("updates", ()))})
    study = Study(**{**node, **lists, **sections})
    _check_sequential(study)
    _check_halving(study)
    return name, study, [each for each in shared if key_of(each) not in varied]


@dataclass(frozen=True)
class StudyKeys:
    """The keys of a study as the command line names them: sweep.KEY."""

    sweep: Study


def _refuse_empty(node: Mapping[str, Any]) -> None:
    empty = [f"sweep.grid.{key}" for key, values in node["grid"].items() if not values]
    empty += ["sweep.seeds"] if node.get("seeds") is not None and not node["seeds"] else []
    if empty:
        raise ConfigError(f"{empty[0]}: expected at least one value; an empty list makes no job")


def _check_sequential(study: Study) -> None:
    """Raises ConfigError if seeds cannot be added to this study."""
    most = study.sequential.max_seeds
    if most is None:
        if study.sequential != Sequential():
            raise ConfigError("sweep.sequential.max_seeds: required; the most seeds per setting, such as 12")
        return
    if study.search:
        raise ConfigError("sweep.sequential: a search tries each setting once; use a grid or jobs")
    if not study.seeds:
        raise ConfigError("sweep.seeds: sequential adds to them; give the first, as in seeds: [0, 1, 2]")
    if len([*settings(study)]) < 2:
        raise ConfigError("sweep.sequential: compares settings; give at least two")


def _check_halving(study: Study) -> None:
    """Raises ConfigError if settings cannot be left out of this study."""
    rungs = study.halving.updates
    if not rungs:
        return
    if study.search or study.sequential.max_seeds:
        raise ConfigError("sweep.halving: not with search or sequential; leave one out")
    if len(rungs) < 2 or any(later <= earlier for earlier, later in itertools.pairwise(rungs)):
        raise ConfigError(f"sweep.halving.updates: expected increasing numbers, such as [10, 30, 90], got {[*rungs]}")
    if UPDATES in study.grid:
        raise ConfigError(f"sweep.halving: sets {UPDATES} itself; leave it out of the grid")


def _parse(overrides: Sequence[str]) -> list[Override]:
    with composition_errors():
        return OverridesParser.create().parse_overrides(list(overrides))


def _values(override: Override) -> list[Any]:
    """The values of a list on the command line."""
    if not override.is_discrete_sweep() or isinstance(override.value(), Glob):
        raise ConfigError(f"{override.input_line}: expected the values themselves, as in {override.key_or_group}=a,b")
    return [parse_value(text) for text in override.sweep_string_iterator()]


def _set(node: dict[str, Any], key: str, value: Any) -> None:
    """Changes a value of the study: `grid.method.kl_coef` is a key of grid, `plot.x` a key of plot."""
    head, _, rest = key.partition(".")
    if rest:
        inner = node.get(head)
        node[head] = {**(inner if isinstance(inner, dict) else {}), rest: value}
    else:
        node[head] = value


def _load(override: Override, root: Path) -> tuple[str, dict[str, Any]]:
    """The name and content of a study's file: sweep/NAME.yaml or a path."""
    name = plain_value(override.value())
    if not isinstance(name, str):
        raise ConfigError(f"{(override.input_line or '').lstrip('+')}: expected one study; start a sweep for each")
    files = [folder / f"{name}.yaml" for folder in study_dirs(root)]
    there = next((file for file in files if file.is_file()), files[-1])
    path = Path(name) if name.endswith((".yaml", ".yml")) else there
    return path.stem, _node(path, f"sweep={name}")


def _saved(path: Path) -> tuple[str, dict[str, Any]]:
    """The study recorded by an earlier session: its original file may have changed since."""
    node = _node(path, "resume")
    known = {each.name for each in fields(Study)}
    return str(node.get("name", "multirun")), {key: value for key, value in node.items() if key in known}


def _node(path: Path, key: str) -> dict[str, Any]:
    try:
        node: Any = load_yaml(path)
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror or error}") from None
    except (YAMLError, ValueError, OmegaConfBaseException, RecursionError) as error:
        raise ConfigError(f"{key}: {path} is not valid YAML: {one_line(error)}") from None
    if not isinstance(node, dict):
        raise ConfigError(f"{key}: {path}: expected keys such as question, base, grid, seeds")
    return node
