"""Reads the stages of a pipeline from its YAML and command line: training runs, generations, evaluations and calls.

    sft: [method=sft, data=world_demonstrations]             a training run: overrides of conf/config.yaml
    ppo:                                                      one run per branch: ppo.low and ppo.high
      train: [method=ppo, model=run, "model.path=${stages.sft.model}"]
      each: {low: [method.kl_coef=0.05], high: [method.kl_coef=0.2]}
    pairs: {generate: [selection=preferences]}                     overrides of conf/generate.yaml
    test: {evaluate: [model=run, "model.path=${stages.ppo.low.folder}"]}    overrides of conf/evaluate.yaml
    plot: {call: package.module.function, arguments: {runs: "${stages.ppo}"}}

With `seeds: [0, 1, 2]` beside `stages`, every stage runs once per seed and refers to stages of the same seed; a stage
with `once: true` runs once for all seeds. `expect` and `reference` beside them are claims about the stages (claims.py).

`${stages.NAME.folder}` is the folder of an earlier stage, `.model` the exported model of a training run, `.start` its
initial model, `.data` the rows selected by a generation; `${stages.NAME}` of a stage with branches is a mapping of all
of them. On the command line:

    stage.NAME.KEY=VALUE   one stage (or branch: stage.NAME.BRANCH.KEY=VALUE); overrides everything else
    KEY=VALUE              every stage that has the key; overrides the pipeline's YAML except references to stages
    GROUP=OPTION           every stage whose YAML does not select an option of this group

Leaves out composing the configs (plan.py).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from postrain.config.override_text import key_of
from postrain.errors import ConfigError
from postrain.jobs.graph import PRODUCTS, REFERENCE, Job, Kind, references
from postrain.jsonl import leaves
from postrain.suggestions import suggestion

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
FORMS = (
    "expected a list of overrides, or {train: [...]}, {generate: [...]}, {evaluate: [...]}, "
    "{call: function, arguments: {...}}"
)
KEYS = ("stages", "seeds", "expect", "reference")
# Keys of the pipeline or of this session, not passed to stages.
PIPELINE_KEYS = ("pipeline", "experiment", "resume", "allow_change", "debug", "name", "paths")


def stages_of(node: Any) -> tuple[Job, ...]:
    """The stages of a pipeline's config node, in order, not composed. Raises one ConfigError with all problems."""
    written = node.get("stages") if isinstance(node, Mapping) else None
    if not isinstance(written, Mapping) or not written or not set(node) <= set(KEYS):
        raise ConfigError(
            "pipeline: expected stages: {NAME: [override, ...], ...}, and optionally seeds, expect and reference"
        )
    problems = [*_seed_problems(node, written)]
    found: list[Job] = []
    for number, (name, value) in enumerate(written.items(), start=1):
        try:
            found += _read(str(name), value, number)
        except ConfigError as problem:
            problems.append(str(problem))
    for index, job in enumerate(found):
        earlier = [each for each in found[:index] if each.once or not job.once]
        problems += _unknown_references(job, earlier)
    if problems:
        raise ConfigError("\n".join(problems))
    return tuple(found)


def _seed_problems(node: Mapping[str, Any], written: Mapping[Any, Any]) -> Iterator[str]:
    seeds, least = node.get("seeds"), 2 if "expect" in node else 1
    if "seeds" not in node:
        once = [name for name, value in written.items() if isinstance(value, Mapping) and "once" in value]
        if "expect" in node:
            yield "pipeline.seeds: missing; claims are decided over at least two seeds, as in seeds: [0, 1, 2]"
        elif once:
            yield f"pipeline.stages.{once[0]}.once: has no effect without pipeline.seeds; remove it"
        return
    known = seeds if isinstance(seeds, list) and all(isinstance(seed, int) and seed >= 0 for seed in seeds) else []
    if len(set(known)) < max(least, len(known)):
        yield f"pipeline.seeds: expected at least {least} different seeds, as in seeds: [0, 1, 2]; got {seeds}"


def over_seeds(stages: Sequence[Job], node: Mapping[str, Any]) -> tuple[Job, ...]:
    """All stages of the first seed, then those of the next ones without the stages that run once."""
    seeds = node.get("seeds")
    if not seeds:
        return tuple(stages)
    return tuple(
        stage if stage.once else _seeded(stage, seed)
        for index, seed in enumerate(seeds)
        for stage in stages
        if not (stage.once and index)
    )


def _seeded(stage: Job, seed: int) -> Job:
    """A stage with a seed; the other keys of its config, if it is composed, do not depend on it."""
    stage, config = replace(stage, folder=f"{stage.folder}-seed_{seed}", seed=seed), stage.config
    if stage.kind == "call":
        return stage
    changed = {**config, "seed": seed, "name": f"{config['name']}-seed_{seed}"} if config else config
    return replace(stage, overrides=(*stage.overrides, f"seed={seed}"), config=changed)


def _read(name: str, value: Any, number: int) -> list[Job]:
    """The branches of a stage, or the stage itself if it has none."""
    if isinstance(value, list):
        value = {"train": value}
    kinds: list[Kind] = [kind for kind in PRODUCTS if isinstance(value, Mapping) and kind in value]
    if len(kinds) != 1 or not NAME.fullmatch(name):
        raise ConfigError(f"pipeline.stages.{name}: {FORMS}; names are letters, digits and _")
    kind = kinds[0]
    unknown = set(value) - {kind, "once", "arguments" if kind == "call" else "each"}
    if unknown:
        raise ConfigError(f"pipeline.stages.{name}.{min(unknown)}: unknown key; {FORMS}")
    once = value.get("once", False)
    if not isinstance(once, bool):
        raise ConfigError(f"pipeline.stages.{name}.once: expected true or false, got {once}")
    folder = f"{number}-{name}"
    if kind == "call":
        call = {**value.get("arguments", {}), "_target_": value["call"]}
        return [Job(name=name, kind=kind, folder=folder, config={"call": call}, once=once)]
    branches = value.get("each", {None: []})
    if not isinstance(branches, Mapping) or not branches:
        raise ConfigError(f"pipeline.stages.{name}.each: expected {{BRANCH: [override, ...], ...}}")
    wrong = [branch for branch in branches if branch is not None and not NAME.fullmatch(str(branch))]
    if wrong:
        raise ConfigError(f"pipeline.stages.{name}.{wrong[0]}: names of branches are letters, digits and _")
    lists = [value[kind], *branches.values()]
    if not all(isinstance(each, list) and all(isinstance(override, str) for override in each) for each in lists):
        raise ConfigError(f"pipeline.stages.{name}: overrides are lists of texts such as method=sft; {FORMS}")
    return [
        Job(
            name=name if branch is None else f"{name}.{branch}",
            kind=kind,
            folder=folder if branch is None else f"{folder}-{branch}",
            overrides=(*value[kind], *more),
            once=once,
        )
        for branch, more in branches.items()
    ]


def _unknown_references(job: Job, earlier: Sequence[Job]) -> Iterator[str]:
    """Messages for references to outputs that no earlier stage has."""
    known = references(earlier, Path())
    texts = [*job.overrides, *(item for _, item in leaves("", job.config) if isinstance(item, str))]
    for reference in (found for text in texts for found in REFERENCE.findall(text)):
        here: Any = known
        for part in reference.split("."):
            if not isinstance(here, Mapping) or part not in here:
                there = list(here) if isinstance(here, Mapping) else []
                yield f"stage {job.name}: ${{stages.{reference}}}: no earlier stage provides {part}{_hint(part, there)}"
                break
            here = here[part]


def _hint(name: str, known: Sequence[str]) -> str:
    return suggestion(name, known, f"there is {', '.join(known) or 'nothing'}")


@dataclass(frozen=True)
class Overrides:
    """The overrides of a command line, by stage."""

    shared: tuple[str, ...]
    own: Mapping[str, list[str]]
    """Overrides of one stage or branch, by its name."""


def split(overrides: Iterable[str], stages: Sequence[Job]) -> Overrides:
    """Separates overrides for all stages from those for one. Raises one ConfigError with all problems."""
    names = [stage.name for stage in stages]
    heads = list(dict.fromkeys(name.partition(".")[0] for name in names))
    own: dict[str, list[str]] = {}
    shared: list[str] = []
    problems: list[str] = []
    for override in overrides:
        if not override.startswith("stage."):
            shared += [override] if key_of(override).partition(".")[0] not in PIPELINE_KEYS else []
            continue
        key, equals, value = override.removeprefix("stage.").partition("=")
        parts = key.split(".")
        size = 2 if ".".join(parts[:2]) in names else 1
        name = ".".join(parts[:size])
        if name not in names and name not in heads:
            problems.append(f"{override}: there is no stage {parts[0]}{_hint(parts[0], heads)}")
        elif not parts[size:]:
            problems.append(f"{override}: expected a setting of the stage, as in stage.{name}.seed=1")
        else:
            own.setdefault(name, []).append(".".join(parts[size:]) + equals + value)
    if problems:
        raise ConfigError("\n".join(problems))
    return Overrides(tuple(shared), own)


def stage_overrides(
    given: Overrides, stage: Job, accepts: Callable[[str], bool], groups: Collection[str]
) -> tuple[list[str], set[str]]:
    """The overrides of a stage, in order of increasing precedence, and the shared overrides among them.

    `accepts` returns whether this kind of stage has a key; `groups` are the config groups.
    """
    names = dict.fromkeys((stage.name.partition(".")[0], stage.name))
    own = [override for name in names for override in given.own.get(name, [])]
    chosen = {key_of(override) for override in stage.overrides}
    fixed = {key_of(override) for override in stage.overrides if REFERENCE.search(override)}
    reached = [
        override
        for override in given.shared
        if accepts(key := key_of(override)) and key not in fixed and not (key in groups and key in chosen)
    ]
    return [*stage.overrides, *reached, *own], set(reached)


def check_seeds(given: Overrides, node: Mapping[str, Any]) -> None:
    """Raises ConfigError for an override of a seed that the pipeline sets."""
    overrides = [*given.shared, *(each for own in given.own.values() for each in own)]
    wrong = [override for override in overrides if key_of(override) == "seed"] if "seeds" in node else []
    if wrong:
        raise ConfigError(f"{wrong[0]}: the pipeline sets the seed of each stage; write pipeline.seeds=[0,1,2]")


def unused(given: Overrides, reached: Collection[str]) -> list[str]:
    """An error line for each shared override that no stage uses."""
    return [
        f"{override}: no stage uses it: each selects its own option or does not have the key; for one stage write "
        f"stage.NAME.{override}"
        for override in given.shared
        if override not in reached
    ]
