"""What a pipeline's YAML says: stages by name, each a training run, a generation, an evaluation or a function's call.

    sft: [method=sft, data=world_demonstrations]             a training run: overrides of conf/config.yaml
    ppo:                                                      several runs, a branch each: ppo.low and ppo.high
      train: [method=ppo, model=run, "model.path=${stages.sft.model}"]
      each: {low: [method.kl_coef=0.05], high: [method.kl_coef=0.2]}
    pairs: {generate: [keep=preferences]}                     overrides of conf/generate.yaml
    test: {evaluate: [model=run, "model.path=${stages.ppo.low.folder}"]}    overrides of conf/evaluate.yaml
    plot: {call: package.module.function, arguments: {runs: "${stages.ppo}"}}

`${stages.NAME.folder}` is where an earlier stage lies, `.model` what a training run exports, `.start` the model that it
began with, `.data` the rows that a generation keeps; `${stages.NAME}` of a stage with branches is a mapping of all of
them. Leaves out composing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from postrain.types import ConfigError

# What a training run began with.
START = "start"
Kind = Literal["train", "generate", "evaluate", "call"]
PRODUCTS: Mapping[Kind, Mapping[str, str]] = {
    "train": {"folder": "", "model": "model", "start": START},
    "generate": {"folder": "", "data": "data.jsonl"},
    "evaluate": {"folder": ""},
    "call": {"folder": ""},
}
"""What a later stage may ask a stage of each kind for, and where that lies in its folder; START lies elsewhere."""
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
REFERENCE = re.compile(r"\$\{stages\.([^}]*)\}")
FORMS = (
    "expected a list of overrides, or {train: [...]}, {generate: [...]}, {evaluate: [...]}, "
    "{call: function, arguments: {...}}"
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One thing to do."""

    name: str
    """`stage`, or `stage.branch`."""
    kind: Kind
    folder: str
    """Its own, inside the pipeline's."""
    overrides: tuple[str, ...] = ()
    """What the YAML says of anything but a call."""
    call: Mapping[str, Any] = field(default_factory=dict)
    """The function and its arguments."""

    def said(self) -> Iterator[str]:
        """Every text that may refer to another stage."""
        yield from self.overrides
        yield from _texts(self.call)


def stages_of(node: Any) -> tuple[Stage, ...]:
    """The stages of a pipeline's config node, in order, all problems in one ConfigError."""
    written = node.get("stages") if isinstance(node, Mapping) else None
    if not isinstance(written, Mapping) or not written or set(node) != {"stages"}:
        raise ConfigError("pipeline: expected stages: {NAME: [override, ...], ...} and nothing else")
    problems: list[str] = []
    found: list[Stage] = []
    for number, (name, value) in enumerate(written.items(), start=1):
        try:
            found += _read(str(name), value, number)
        except ConfigError as problem:
            problems.append(str(problem))
    problems += [problem for place, stage in enumerate(found) for problem in _unknown_references(stage, found[:place])]
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(found)


def _read(name: str, value: Any, number: int) -> list[Stage]:
    """The branches of one stage; itself where it has none."""
    if isinstance(value, list):
        value = {"train": value}
    kinds: list[Kind] = [kind for kind in PRODUCTS if isinstance(value, Mapping) and kind in value]
    if len(kinds) != 1 or not NAME.fullmatch(name):
        raise ConfigError(f"pipeline.stages.{name}: {FORMS}; names are letters, digits and _")
    kind = kinds[0]
    unknown = set(value) - {kind, "arguments" if kind == "call" else "each"}
    if unknown:
        raise ConfigError(f"pipeline.stages.{name}.{min(unknown)}: unknown key; {FORMS}")
    folder = f"{number}-{name}"
    if kind == "call":
        call = {**value.get("arguments", {}), "_target_": value["call"]}
        return [Stage(name=name, kind=kind, folder=folder, call=call)]
    branches = value.get("each", {None: []})
    if not isinstance(branches, Mapping) or not branches:
        raise ConfigError(f"pipeline.stages.{name}.each: expected {{BRANCH: [override, ...], ...}}")
    wrong = [branch for branch in branches if branch is not None and not NAME.fullmatch(str(branch))]
    if wrong:
        raise ConfigError(f"pipeline.stages.{name}.{wrong[0]}: names of branches are letters, digits and _")
    lists = [value[kind], *branches.values()]
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words) for words in lists):
        raise ConfigError(f"pipeline.stages.{name}: overrides are lists of texts such as method=sft; {FORMS}")
    return [
        Stage(
            name=name if branch is None else f"{name}.{branch}",
            kind=kind,
            folder=folder if branch is None else f"{folder}-{branch}",
            overrides=(*value[kind], *more),
        )
        for branch, more in branches.items()
    ]


def places(stages: Sequence[Stage], root: Path) -> dict[str, Any]:
    """What `${stages...}` stands for, with the pipeline in the folder `root`."""
    found: dict[str, Any] = {}
    for stage in stages:
        *above, last = stage.name.split(".")
        home = found.setdefault(above[0], {}) if above else found
        home[last] = {name: str(place(root, stage) / file) for name, file in PRODUCTS[stage.kind].items()}
    return found


def place(root: Path, stage: Stage) -> Path:
    """The folder of a stage; that of another job, where a sweep's jobs share the stage."""
    own = root / stage.folder
    return Path(os.path.normpath(root / os.readlink(own))) if own.is_symlink() else own


def _unknown_references(stage: Stage, earlier: Sequence[Stage]) -> Iterator[str]:
    """References of a stage to what no earlier one makes."""
    known = places(earlier, Path())
    for reference in (found for text in stage.said() for found in REFERENCE.findall(text)):
        here: Any = known
        for part in reference.split("."):
            if not isinstance(here, Mapping) or part not in here:
                there = list(here) if isinstance(here, Mapping) else []
                yield f"stage {stage.name}: ${{stages.{reference}}}: no earlier stage gives {part}{_hint(part, there)}"
                break
            here = here[part]


def misspelt(name: str, known: Sequence[str]) -> str:
    """That there is no stage of this name."""
    return f"there is no stage {name}{_hint(name, known)}"


def _hint(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there is {', '.join(known) or 'nothing'}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
