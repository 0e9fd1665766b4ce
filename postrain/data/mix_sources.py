"""The sources of `data.mix` and `data.replay`, and the short forms in which they are written.

    data.mix: {a.jsonl: 0.7, world_sums: 0.3}          files or options of the group data, with weights
    data.mix: [a.jsonl, b.jsonl]                       weights are the sizes
    data.mix: {maths: {path: b.jsonl, weight: 0.3}}    with further keys, under a name
    data.replay: base.txt                              a share of 0.1

`expand` replaces the short forms before a config is checked, so that saved configs do not depend on options.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import DocInfo, Interval

from postrain.config.schema import TARGET
from postrain.data.data_options import Part, rows_named
from postrain.data.decontaminate import Decontaminate
from postrain.errors import ConfigError
from postrain.types import NonNegative

SHORT_FORMS = ("mix", "replay", "eval_path", "decontaminate")
"""The keys that have short forms."""
NAME = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class MixSource(Part):
    """A source of `data.mix`."""

    weight: NonNegative | None = None
    """Share of the source relative to the other weights, in the unit of data.mix_by; null is its size in that unit. 0
    leaves it out of training: its held-out rows are still evaluated."""


@dataclass(frozen=True, kw_only=True)
class Replay(Part):
    """The source of `data.replay`."""

    share: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of the tokens in the loss; 0 leaves it out of training: its held-out rows are still evaluated."""
    max_length: Annotated[int, Interval(ge=4, le=1_000_000_000)] = 128
    """Running text is joined and cut into blocks of this number of tokens. Shorter blocks are spread over more
    batches."""


Mix = Annotated[Mapping[str, MixSource], DocInfo("weights by file or data option, as in {a.jsonl: 0.7, b.jsonl: 0.3}")]


# Short forms ----------------------------------------------------------------------------------------------------------


def expand(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the group data, without short forms of several sources, files or benchmarks.

    Malformed values stay unchanged: the check of the config reports them.
    """
    found = dict(settings)
    if isinstance(mix := found.get("mix"), list | tuple):
        found["mix"] = mix = _listed(mix)
    if isinstance(mix, Mapping):
        keys = names([str(key) for key in mix])
        found["mix"] = {keys[str(key)]: _mix_source(str(key), value) for key, value in mix.items()}
    if isinstance(found.get("decontaminate"), str | list | tuple):
        found["decontaminate"] = {"path": found["decontaminate"]}
    if (benchmark := found.get("decontaminate")) is not None:
        found["decontaminate"] = _node(Decontaminate, benchmark)
    if (replay := found.get("replay")) is not None:
        found["replay"] = _node(Replay, rows_named(replay) if isinstance(replay, str) else replay)
    if isinstance(files := found.get("eval_path"), list | tuple):
        keys = names([str(file) for file in files])
        found["eval_path"] = {keys[str(file)]: str(file) for file in files}
    return found


def _listed(files: Sequence[Any]) -> dict[str, None]:
    """The sources of a list, weighted by their sizes. Raises ConfigError."""
    found = Counter(map(str, files))
    for file, count in found.items():
        if file not in files:
            raise ConfigError(f"data.mix: expected files or data options in a list, got {file}; weights go without [ ]")
        if count > 1:
            raise ConfigError(f"data.mix: {file} is listed {count} times; give weights, as in {{{file}: 2, OTHER: 1}}")
    return dict.fromkeys(found)


def names(keys: Sequence[str]) -> dict[str, str]:
    """The name of each source: the file name without suffix, with the folder's name if two files have the same.

    Raises ConfigError for two sources of one name.
    """
    stems = {key: _stem(key) for key in keys}
    repeated = {name for name, count in Counter(stems.values()).items() if count > 1}
    folders = {key: _plain(Path(key).parent.name) for key in keys}
    found = {key: f"{folders[key]}_{stem}".lstrip("_") if stem in repeated else stem for key, stem in stems.items()}
    twice = next((name for name, count in Counter(found.values()).items() if count > 1), None)
    if twice is not None:
        same = " and ".join(key for key, name in found.items() if name == twice)
        raise ConfigError(f"data: {same} are both named {twice}; name one, as in data.mix={{NAME: {{path: FILE}}}}")
    return found


def _stem(key: str) -> str:
    path = Path(key)
    name = _plain(path.name.split(".")[0])
    return name if name.strip("_") else _plain(path.parent.name) or "rows"


def _plain(text: str) -> str:
    return NAME.sub("_", text)


def _mix_source(key: str, value: Any) -> Any:
    if isinstance(value, MixSource):
        return value
    settings = dict(value) if isinstance(value, Mapping) else {"weight": value}
    named = settings.get("path") is not None or settings.get("source") is not None
    return _node(MixSource, settings if named else {**rows_named(key), **settings})


def _node(kind: type, settings: Any) -> Any:
    named = f"{kind.__module__}.{kind.__qualname__}"
    return {TARGET: named, **settings} if isinstance(settings, Mapping) else settings
