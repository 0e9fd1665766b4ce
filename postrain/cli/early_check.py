"""Reports the commonest mistakes, misspelt keys and missing files, before torch and Lightning are imported.

It reads signatures from source (static_schema.py). What it does not report is left to check.py, which has all types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from postrain.config import renamed
from postrain.config.check import problems_of
from postrain.config.schema import TARGET, is_node, schema_of
from postrain.config.static_schema import static_target
from postrain.data.readers import existing_file
from postrain.errors import ConfigError
from postrain.runs.folder import RunFolder

ROOTS = {
    "config": "postrain.training.config.TrainConfig",
    "generate": "postrain.generation.config.GenerateConfig",
    "evaluate": "postrain.evaluation.config.EvaluateConfig",
    "stress": "postrain.evaluation.config.EvaluateConfig",
}
"""The dataclass of the top-level keys, by the name of the primary config."""
LEFT_OUT = ("trainer",)
"""Groups whose nodes also accept keys of another library, which their class translates."""
SHORT_FORMS = ("mix", "replay", "eval_path", "decontaminate")
"""Keys of the group data whose short forms its class translates (data/mix_sources.py)."""
GLOB = frozenset("*?[$")
"""Characters of patterns and of references to other keys."""


def check_early(config: DictConfig, config_name: str) -> None:
    """Raises ConfigError with all problems of keys and values if a key is unknown or a component has no
    `_target_`, or for a missing file."""
    # A pipeline checks each of its stages.
    if config.get("pipeline"):
        return
    plain: Any = OmegaConf.to_container(config)
    if isinstance(resume := plain.get("resume"), str):
        if not Path(resume).expanduser().exists():
            RunFolder.open(resume)
        return  # its own config follows
    if plain.get("fork"):
        return  # likewise
    settings = {name: value for name, value in renamed.config(plain).items() if name not in LEFT_OUT}
    if isinstance(data := settings.get("data"), Mapping):
        settings["data"] = {name: value for name, value in data.items() if name not in SHORT_FORMS}
    # Values that refer to other keys may refer to defaults, which are unknown here.
    referring = {*_references(settings), *LEFT_OUT}
    try:
        root = static_target(ROOTS[config_name])
        required = {name for name, key in schema_of(root).keys.items() if key.required}
        problems = [
            problem
            for problem in problems_of(_with_stand_ins(settings), root)
            # Defaults name the class of other components, such as data.quality.
            if problem.kind != "no class" or problem.path in required
        ]
    except (LookupError, SyntaxError):  # a class that the source creates while it runs, or a user's broken file
        return
    # Without a component, references of other groups to its defaults have no value.
    if any(problem.kind in ("unknown key", "no class") for problem in problems):
        shown = [one for one in problems if one.kind != "missing" or one.path not in referring]
        raise ConfigError("\n".join(map(str, shown)))
    _check_files(settings)


def _check_files(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError if the data file that the config names does not exist."""
    data = settings.get("data")
    path = data.get("path") if isinstance(data, Mapping) else None
    if isinstance(path, str) and not GLOB.intersection(path) and not Path(path).expanduser().exists():
        existing_file(path)


def _with_stand_ins(value: Any) -> Any:
    """Plain containers with stand-ins as `_target_`, without the values that refer to other keys."""
    if isinstance(value, list):
        return [_with_stand_ins(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    items = {name: _with_stand_ins(item) for name, item in value.items() if not _is_reference(item)}
    return {**items, TARGET: static_target(str(value[TARGET]))} if is_node(value) else items


def _references(value: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """The dotted keys whose values refer to other keys."""
    for name, item in value.items():
        if _is_reference(item):
            yield f"{path}{name}"
        elif isinstance(item, Mapping):
            yield from _references(item, f"{path}{name}.")


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value
