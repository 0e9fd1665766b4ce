"""What runs are called beside each other: what they have in common is left out, what tells them apart is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postrain.report.folders import Run

MOST_KEYS = 3
# What a run is called, where it lies and how it was started make it no other run.
OF_NO_ACCOUNT = ("name", "paths", "report", "logger", "debug", "resume", "allow_change", "stages")


def labels(runs: Sequence[Run]) -> list[str]:
    """A different name for each run: method, model and settings as far as they tell runs apart."""
    several_models = len({run.model for run in runs}) > 1
    names = [f"{run.method} on {run.model}" if several_models else run.method for run in runs]
    found = []
    for name, run in zip(names, runs, strict=True):
        alike = [other for known, other in zip(names, runs, strict=True) if known == name]
        found.append(" ".join([name, *(_told_apart(run, alike) if len(alike) > 1 else ())]))
    doubled = [name for name in found if found.count(name) > 1]
    return [f"{name} {run.path.name}" if name in doubled else name for name, run in zip(found, runs, strict=True)]


def _told_apart(run: Run, alike: Sequence[Run]) -> list[str]:
    """The first few settings that differ, the kind of a part rather than all that belongs to it."""
    unlike, said = differing(alike), flat_settings(run)
    kinds = dict.fromkeys(key.partition(".")[0] for key in unlike if key.endswith("._target_"))
    told = [f"{group}={said.get(f'{group}._target_', 'none')}" for group in kinds]
    told += [f"{key.rpartition('.')[2]}={said.get(key, '–')}" for key in unlike if key.partition(".")[0] not in kinds]
    return told[:MOST_KEYS]


def differing(runs: Sequence[Run]) -> dict[str, list[str]]:
    """The settings that are not the same in all runs: by key, each run's; the seed comes last."""
    settings = [flat_settings(run) for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = {key: [one.get(key, "–") for one in settings] for key in keys}
    unlike = {key: values for key, values in rows.items() if len(set(values)) > 1}
    return dict(sorted(unlike.items(), key=lambda item: (item[0] == "seed", item[0].endswith("_target_"))))


def flat_settings(run: Run) -> dict[str, str]:
    """The config as dotted keys and texts."""
    return {key: value for key, value in _flat(run.settings, "") if key.partition(".")[0] not in OF_NO_ACCOUNT}


def _flat(value: Any, key: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping):
        return [row for name, item in value.items() for row in _flat(item, f"{key}.{name}".lstrip("."))]
    return [(key, _kind(value) if key.endswith("_target_") and isinstance(value, str) else str(value))]


def _kind(target: str) -> str:
    """The class of a part; a part that does nothing is called none: NoAdapter, NoTracker."""
    name = target.rpartition(".")[2]
    return "none" if name[:2] == "No" and name[2:3].isupper() else name
