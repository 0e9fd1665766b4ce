"""Resumes an earlier run with its saved config; overrides on the command line need allow_change=true."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from postrain.config import renamed
from postrain.config.override_text import key_of, resume_command
from postrain.config.tree import SESSION
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError, one_line
from postrain.jsonl import read_json
from postrain.runs.folder import RunFolder

# Keys that every saved config has.
REQUIRED_KEYS = ("model", "data", "trainer", "seed")
PATH_KEYS = ("path", "eval_path", "reference")
"""Keys whose values may be the bare name of a folder."""
NO_INPUTS = ("paths", "name", "logger")
"""Sections without files that a run reads."""
REMEDY = "give another run folder or restore its config.yaml"


class Fingerprinted(Protocol):
    """A model or a data set with a hash of its content."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...


def saved_config(folder: RunFolder) -> dict[str, Any]:
    """The saved config of the run in `folder`.

    A file or directory that does not exist relative to the working directory, but relative to the one in which the run
    was started, has its absolute path.
    """
    config, start = read_config(folder), read_json(folder.manifest).get("started_in")
    if not isinstance(start, str):
        return config
    return {key: value if key in NO_INPUTS else _found_in(start, key, value) for key, value in config.items()}


def _found_in(start: str, key: str, value: Any) -> Any:
    """A value of a config with absolute paths for the files of the directory `start`, also in `file.py:name`.

    Words such as `linear` are paths only for the keys of paths.
    """
    if isinstance(value, Mapping):
        return {name: _found_in(start, key if key in PATH_KEYS else name, item) for name, item in value.items()}
    if isinstance(value, list):
        return [_found_in(start, key, item) for item in value]
    file = value.partition(":")[0] if isinstance(value, str) else ""
    if not file or not (key in PATH_KEYS or "/" in file or os.path.splitext(file)[1]):
        return value
    absolute = os.path.join(start, value)
    return absolute if os.path.exists(os.path.join(start, file)) and not os.path.exists(file) else value


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The content of config.yaml."""
    try:
        config: Any = load_yaml(folder.config)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError) as error:
        reason = one_line(error)
        raise ConfigError(f"{folder.config} cannot be read as the config of a run ({reason}); {REMEDY}") from None
    if not isinstance(config, dict) or not config:
        raise ConfigError(f"{folder.config} is not the config of a run: expected keys and values; {REMEDY}")
    return current(config)


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config of an earlier version as this one writes it: with new names, and without `method.updates` if
    `method.num_train_epochs` sets the length."""
    found = renamed.config(config, quiet=True)
    method = found.get("method")
    if isinstance(method, Mapping) and method.get("num_train_epochs") is not None:
        found["method"] = {name: value for name, value in method.items() if name != "updates"}
    return found


def resumed_config(folder: RunFolder, composed: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The saved config of the run in `folder`, with the current overrides applied.

    `composed` is the config of the current command line and provides the values of the overrides. Raises ConfigError
    with the differences unless `allow_change` is set.
    """
    saved = checked_config(folder)
    if ("selection" in saved) != ("selection" in composed):
        what, program = ("generation", "generate") if "selection" in saved else ("training run", "train")
        raise ConfigError(f"resume: {folder.path} is a {what}; resume it with {resume_command(program, folder.path)}")
    changed = changed_config(saved, composed, overrides)
    if not composed["allow_change"]:
        changed = with_measured_dtype(changed, saved)
    if changed.get("fork") != saved.get("fork"):
        raise ConfigError("fork: starts a new run, and resume= continues one; leave out one of them")
    differences = differing(saved, changed)
    if differences and not composed["allow_change"]:
        raise ConfigError(
            f"resume: {folder.path} was run with other settings ({'; '.join(differences)}); "
            "set allow_change=true to continue with the new ones, or start a new run"
        )
    return changed | {key: composed[key] for key in SESSION}


def checked_config(folder: RunFolder) -> dict[str, Any]:
    """The saved config of the run in `folder`, with the keys that every run has."""
    saved = saved_config(folder)
    if missing := [key for key in REQUIRED_KEYS if key not in saved]:
        raise ConfigError(f"{folder.config} is not the config of a run: it has no {', '.join(missing)}; {REMEDY}")
    return saved


def training_config(folder: RunFolder, key: str) -> dict[str, Any]:
    """The saved config of the training run in `folder`; messages name `key`."""
    saved = checked_config(folder)
    if "method" not in saved or "selection" in saved:
        raise ConfigError(f"{key}: {folder.path} is not a training run; give the folder of one")
    return saved


def changed_config(saved: Mapping[str, Any], composed: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A saved config with the values that `composed` has for the keys of the overrides."""
    changed = dict(saved)
    for key in [key_of(override).partition("@")[0] for override in overrides]:
        if key.split(".")[0] not in SESSION:
            key = renamed.argument(key, composed)
            # Without the group on the command line, only the saved node has the class.
            name = renamed.argument(key, changed).rpartition(".")[2]
            changed = _copy_value(changed, key.split("."), composed, name)
    # null is the default of the model, which the saved config has as a number.
    for key in ("learning_rate", "micro_batch_tokens"):
        if isinstance(changed.get("method"), dict) and changed["method"].get(key, 0) is None:
            changed = _copy_value(changed, ["method", key], saved)
    return changed


def with_measured_dtype(config: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose `rollout.dtype=auto` is the precision that the run with the config `saved` has measured."""
    asked, known = ((one.get("rollout") or {}).get("dtype") for one in (config, saved))
    return _copy_value(config, ["rollout", "dtype"], saved) if asked == "auto" and known else dict(config)


def differing(saved: Mapping[str, Any], changed: Mapping[str, Any]) -> list[str]:
    """One `key: old → new` for each setting of a run that differs; not for those of a session."""
    return [line for line in _differences(saved, changed) if line.split(":")[0] not in SESSION]


def check_model(folder: RunFolder, resolved: Fingerprinted) -> None:
    """Raises ConfigError if the initial weights have changed: a checkpoint holds only the trained parameters."""
    recorded = _recorded_model(folder).get("fingerprint")
    if recorded not in (None, resolved.fingerprint):
        raise ConfigError(
            f"resume: {folder.path} started from other weights than {resolved.name} has now ({recorded} → "
            f"{resolved.fingerprint}): the files changed, or a stand-in was replaced; start a new run"
        )


def check_reference(folder: RunFolder, other: Fingerprinted | None) -> None:
    """Raises ConfigError if the reference model has changed."""
    recorded = _recorded_model(folder).get("reference")
    if other is not None and recorded not in (None, other.fingerprint):
        raise ConfigError(
            f"resume: {folder.path} started with another reference than {other.name} is now ({recorded} → "
            f"{other.fingerprint}): its files changed; start a new run"
        )


def check_data(folder: RunFolder, audit: Fingerprinted) -> None:
    """Raises ConfigError if the training or held-out rows have changed."""
    data = read_json(folder.manifest).get("data") if folder.manifest.is_file() else read_json(folder.fork)
    recorded = data.get("fingerprint") if isinstance(data, Mapping) else None
    if recorded not in (None, audit.fingerprint):
        raise ConfigError(
            f"resume: {folder.path} started with data fingerprint {str(recorded)[:16]}, and {audit.name} has "
            f"{audit.fingerprint[:16]}: the rows or their encoding changed; restore them, start a new run, or set "
            "allow_change=true to continue with the new rows"
        )


def _recorded_model(folder: RunFolder) -> Mapping[str, Any]:
    """The model entry of the manifest; {} without a manifest."""
    found = read_json(folder.manifest).get("model")
    return found if isinstance(found, Mapping) else {}


def _copy_value(
    config: Mapping[str, Any], keys: Sequence[str], source: Mapping[str, Any], name: str | None = None
) -> dict[str, Any]:
    """A copy of `config` with the value of `source` at the path `keys`, whose last key is `name` in `config`."""
    first, rest = keys[0], keys[1:]
    value = source.get(first)
    if rest and isinstance(value, Mapping):
        inner = config.get(first)
        return {**config, first: _copy_value(inner if isinstance(inner, Mapping) else {}, rest, value, name)}
    return {**config, (first if rest else name or first): value}


def _differences(before: Any, after: Any, path: str = "") -> list[str]:
    """One `key: old → new` for each leaf that differs."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted(set(before) | set(after))
        return [
            line
            for key in keys
            for line in _differences(before.get(key), after.get(key), f"{path}.{key}" if path else str(key))
        ]
    return [] if before == after else [f"{path}: {before} → {after}"]
