"""A pipeline ready to start: every stage composed and checked, kept in pipeline.yaml so that it can be gone on with.

Composed configs keep their references to other stages as they were written; they are resolved against the folder the
pipeline lies in when a stage starts. Leaves out running.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from postrain.config.arguments import composing
from postrain.config.arguments import resolved as settled_config
from postrain.config.check import check, instantiate
from postrain.config.extras import check_packages
from postrain.config.overrides import forced, settled
from postrain.config.trust import Found, Guest, confirmable
from postrain.evaluation.config import Appraisal, check_appraisal
from postrain.generation.config import Generation, check_generation
from postrain.jobs.stage_overrides import for_stage, split, unheard
from postrain.jobs.stages import START, Stage, places, stages_of
from postrain.jsonl import atomic_write_text
from postrain.runs.folder import writing
from postrain.runs.manifest import reproduce
from postrain.training.config import Root
from postrain.types import ConfigError

FILE = "pipeline.yaml"
CONF = Path(__file__).parents[2] / "conf" / "pipeline"
# The primary config of each kind of stage and what it has to be.
ROOTS: Mapping[str, tuple[str, type]] = {
    "train": ("config", Root),
    "generate": ("generate", Generation),
    "evaluate": ("evaluate", Appraisal),
}
CHECKS = {"train": partial(check, root=Root), "generate": check_generation, "evaluate": check_appraisal}
UNREADABLE = (YAMLError, OmegaConfBaseException)
FILES = (("data", "path"), ("data", "eval_path"))
# Stands for the pipeline's folder while there is none: what lies in it is not looked for.
CHECKED = Path("PIPELINE")


@dataclass(frozen=True, kw_only=True)
class Call:
    """A stage that calls a function."""

    call: Any


@dataclass(frozen=True, kw_only=True)
class Step:
    """A stage with its config."""

    stage: Stage
    words: tuple[str, ...]
    """The overrides it was composed from."""
    config: Mapping[str, Any]
    """References not resolved yet."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of a pipeline."""

    name: str
    node: Mapping[str, Any]
    """The pipeline as its YAML wrote it."""
    words: tuple[str, ...]
    """The command line."""
    steps: tuple[Step, ...]
    report: bool = True
    """Whether there is to be a page on all of them at the end."""

    def save(self, folder: Path) -> None:
        """Writes pipeline.yaml."""
        text = OmegaConf.to_yaml(OmegaConf.create(asdict(self)))
        with writing(folder):
            atomic_write_text(folder / FILE, f"# {reproduce(self.words)}\n{text}", private=True)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan of the pipeline in `folder`. Raises ConfigError where its stages are not those of its node."""
        amiss = ConfigError(f"resume: {folder / FILE} is not as it was written; start a new pipeline")
        try:
            saved: Any = OmegaConf.to_container(OmegaConf.load(folder / FILE))
            stages = stages_of(saved["node"])
            written = [step["stage"] for step in saved["steps"]]
            steps = [Step(**{**step, "stage": stage}) for step, stage in zip(saved["steps"], stages, strict=True)]
            plan = cls(**{**saved, "words": tuple(saved["words"]), "steps": tuple(steps)})
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, *UNREADABLE):
            raise amiss from None
        if written != [_listed(asdict(stage)) for stage in stages] or not all(map(_is_whole, steps)):
            raise amiss
        if not isinstance(plan.name, str) or not all(isinstance(word, str) for word in plan.words):
            raise amiss
        return plan

    def resolved(self, step: Step, folder: Path) -> tuple[dict[str, Any], list[str]]:
        """Config and overrides of a step as they are with the pipeline in `folder`."""
        return resolved(step, known([each.stage for each in self.steps], self.steps, folder))


def _is_whole(step: Step) -> bool:
    """Whether a step has what is read of it before its config is checked."""
    config: Any = step.config
    wanted = ("call",) if step.stage.kind == "call" else ("name", "model")
    if not isinstance(config, Mapping) or not all(isinstance(word, str) for word in step.words):
        return False
    model = config.get("model", {"name": None, "path": None})
    return all(key in config for key in wanted) and isinstance(model, Mapping) and {"name", "path"} <= set(model)


def _listed(value: Any) -> Any:
    """A value as YAML gives it back: lists for tuples."""
    if isinstance(value, Mapping):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def make(
    node: Mapping[str, Any],
    name: str,
    words: Sequence[str],
    conf: Path,
    *,
    report: bool = True,
    guest: Guest | None = None,
) -> Plan:
    """Composes and checks all stages, all problems in one ConfigError. Called inside a Hydra job.

    `guest` is the folder that `node` and `words` come from, where today's command line does not give them.
    """
    stages = stages_of(node)
    said = split(words, stages)
    heard: set[str] = set()
    steps: list[Step] = []
    problems: dict[str, list[str]] = {}
    for stage in stages:
        try:
            words_here, reached = for_stage(said, stage, partial(takes, stage.kind), groups())
            heard |= reached
            if guest:
                guest.check_words(words_here)
            step = _composed(stage, words_here, conf)
            if guest:
                vet(step, known(stages, steps, CHECKED), guest)
            _check(step, known(stages, steps, CHECKED))
            steps.append(step)
        except ConfigError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, []).append(stage.name)
    lines = [f"stage {', '.join(names)}: {line}" for line, names in problems.items()] + unheard(said, heard)
    if lines:
        raise ConfigError("\n".join(lines))
    return Plan(name=name, node=node, words=tuple(words), steps=tuple(steps), report=report)


def vet(step: Step, stages: Mapping[str, Any], guest: Guest) -> None:
    """Raises ConfigError for what a stage that comes from a folder cannot decide by itself."""
    config, words = resolved(step, stages)
    guest.check_words(words)
    prefix = f"stage.{step.stage.name}."
    if step.stage.kind != "call":
        guest.check(config, ROOTS[step.stage.kind][1], prefix)
        return
    target = str(config["call"].get("_target_"))
    if target not in own_calls() and ("_target_", target) not in guest.said:
        guest.refuse([Found("_target_", target, "calls this function")], prefix)
    guest.check({name: value for name, value in config["call"].items() if name != "_target_"}, Call, prefix)


@cache
def own_calls() -> frozenset[str]:
    """The functions that pipelines of this package call."""
    nodes = [OmegaConf.to_container(OmegaConf.load(file)) for file in CONF.glob("*.yaml")]
    stages = [stage for node in nodes if isinstance(node, dict) for stage in node.get("stages", {}).values()]
    return frozenset(stage["call"] for stage in stages if isinstance(stage, dict) and "call" in stage)


def code_of(plan: Plan, folder: Path) -> Iterator[tuple[str, Found]]:
    """What a resumed pipeline has to be told again, with the name of its stage."""
    for step in plan.steps:
        config, _ = plan.resolved(step, folder)
        if step.stage.kind != "call":
            yield from ((step.stage.name, one) for one in confirmable(config, ROOTS[step.stage.kind][1]))
        elif config["call"]["_target_"] not in own_calls():
            yield step.stage.name, Found("_target_", config["call"]["_target_"], "calls this function")


def known(stages: Sequence[Stage], steps: Sequence[Step], root: Path) -> dict[str, Any]:
    """What `${stages...}` stands for, with the pipeline in the folder `root` and so many stages composed."""
    found = places(stages, root)
    for step in steps:
        if step.stage.kind == "train":
            name, _, branch = step.stage.name.partition(".")
            home, model = found[name][branch] if branch else found[name], step.config["model"]
            home[START] = model["name"] or model["path"]
    return found


def resolved(step: Step, stages: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Config and overrides with every reference resolved; `stages` is what `${stages...}` stands for."""
    whole = OmegaConf.create({**step.config, "stages": stages, "words": list(step.words)})
    config = settled_config(whole)
    words = config.pop("words")
    del config["stages"]
    return config, words


def takes(kind: str, key: str) -> bool:
    """Whether a stage of this kind has the key; one that no kind has goes to training runs, where it is refused."""
    top = key.partition(".")[0].partition("/")[0].partition("@")[0]
    known = {name: {field.name for field in fields(root)} for name, (_, root) in ROOTS.items()}
    return top in known.get(kind, ()) or (kind == "train" and not any(top in names for names in known.values()))


def groups() -> set[str]:
    """The config groups there are."""
    return set(GlobalHydra.instance().config_loader().list_groups(""))


def _composed(stage: Stage, words: Sequence[str], conf: Path) -> Step:
    if stage.kind == "call":
        call = OmegaConf.create(dict(stage.call))
        call.merge_with_dotlist(list(words))
        return Step(stage=stage, words=(), config={"call": OmegaConf.to_container(call)})
    ready = settled(forced(words, conf, root=ROOTS[stage.kind][0], extra=extra_folder()))
    with composing():
        config = compose(ROOTS[stage.kind][0], [*search_paths(), *ready])
    plain: Any = OmegaConf.to_container(config)
    plain["name"] = plain["name"] or stage.name
    return Step(stage=stage, words=tuple(word.removeprefix("++") for word in ready), config=plain)


def extra_folder() -> str | None:
    """The folder of --config-dir."""
    sources = HydraConfig.get().runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def search_paths() -> list[str]:
    """What the command line says of hydra.searchpath."""
    return [word for word in HydraConfig.get().overrides.hydra if word.startswith("hydra.searchpath")]


def _check(step: Step, stages: Mapping[str, Any]) -> None:
    """Everything wrong with a stage that can be told before the ones before it have run."""
    config, _ = resolved(step, stages)
    if step.stage.kind == "call":
        check({"call": {**config["call"], "folder": str(CHECKED)}}, Call)
        return
    missing = list(_missing_files(config))
    try:
        CHECKS[step.stage.kind](config)
        check_packages(config)
    except ConfigError as error:
        raise ConfigError("\n".join([str(error), *missing])) from None
    if missing:
        raise ConfigError("\n".join(missing))
    # What constructors and the machine refuse beyond that; none of these parts reads weights or rows.
    made = {part: instantiate(config.get(part)) for part in ("method", "trainer", "rollout", "data", "keep")}
    made["trainer"].check()


def _missing_files(config: Mapping[str, Any]) -> Iterator[str]:
    """Files that no stage makes and that are not there."""
    for group, key in FILES:
        path = config[group].get(key)
        if path is not None and CHECKED not in Path(path).parents and not Path(path).expanduser().is_file():
            yield f"{group}.{key}: there is no file {path}"
