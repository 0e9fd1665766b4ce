"""From overrides to jobs: the jobs of a sweep and the stages of a pipeline, each composed, checked and hashed.

All jobs are planned before the first one starts, and all problems are raised in one ConfigError. Called inside a Hydra
job, whose config groups the jobs share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from itertools import count, product
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from postrain.config.arguments import composition_errors, set_values
from postrain.config.arguments import resolved as resolved_config
from postrain.config.check import check
from postrain.config.override_text import format_override
from postrain.config.overrides import forced, last_choices
from postrain.config.paths import CONF
from postrain.config.reference import entries
from postrain.config.tree import complete, settings
from postrain.config.trust import RestrictedValue, UntrustedFolder, restricted_values
from postrain.config.yaml_file import load_yaml
from postrain.errors import ConfigError
from postrain.jobs.graph import Job, Kind, references, resolved
from postrain.jobs.metric_names import metric_problems
from postrain.jobs.problems import Problems, parsed
from postrain.jobs.quantities import claim_problems
from postrain.jobs.session import PROGRAMS
from postrain.jobs.stages import check_seeds, over_seeds, split, stage_overrides, stages_of, unused
from postrain.jobs.study import Setting, Study
from postrain.runs.folder import config_hash
from postrain.runs.forks import ForkPoint

# Placeholder for the folder of a pipeline that is not created yet; files in it are not checked for existence.
CHECKED = Path("PIPELINE")
PIPELINES, EXPERIMENTS = CONF / "pipeline", CONF / "experiment"
# Keys that change where a run is stored and how it is named and displayed, but not the run itself.
NOT_HASHED = ("paths", "name", "dialect", "report", "logger", "debug", "resume", "allow_change")


@dataclass(frozen=True, kw_only=True)
class Call:
    """The schema of a stage that calls a function."""

    call: Any


class Composer:
    """Composes configs as the command line does; caches each combination of options, which takes about 30 files."""

    def __init__(self, conf: Path, untrusted: UntrustedFolder | None = None) -> None:
        """`untrusted` is the folder that some overrides come from."""
        self.conf, self.untrusted = conf, untrusted
        self.composed: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, kind: str, overrides: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
        """The config of a job with unresolved references, and its effective overrides as a user writes them."""
        if self.untrusted:
            self.untrusted.check_overrides(overrides)
        primary = PROGRAMS[kind].primary
        ready = last_choices(forced(overrides, self.conf, root=primary, extra=extra_folder()))
        options = tuple(each for each in ready if not each.startswith("++"))
        values = [each for each in ready if each.startswith("++")]
        with composition_errors():
            if (primary, *options) not in self.composed:
                self.composed[primary, *options] = compose(primary, [*search_paths(), *options])
            config = deepcopy(self.composed[primary, *options])
            set_values(config, values)
        return complete(config, PROGRAMS[kind].config), tuple(each.removeprefix("++") for each in ready)


def extra_folder() -> str | None:
    """The folder of --config-dir."""
    sources = HydraConfig.get().runtime.config_sources
    return next((source.path for source in sources if source.provider == "command-line"), None)


def search_paths() -> list[str]:
    """hydra.searchpath of the command line."""
    return [each for each in HydraConfig.get().overrides.hydra if each.startswith("hydra.searchpath")]


def flags() -> list[str]:
    """The options that a job's command line needs to find the same config groups."""
    extra = extra_folder()
    return [*(["--config-dir", extra] if extra else []), *search_paths()]


# The stages of a pipeline.


def plan_stages(node: Mapping[str, Any], overrides: Sequence[str], composer: Composer) -> tuple[Job, ...]:
    """The stages of a pipeline's config node, composed once for all seeds."""
    jobs = [*stages_of(node)]
    given = split(overrides, jobs)
    check_seeds(given, node)
    reached: set[str] = set()
    problems = Problems()
    groups = set(GlobalHydra.instance().config_loader().list_groups(""))
    for index, stage in enumerate(jobs):
        with problems.of(stage.name):
            own, shared = stage_overrides(given, stage, partial(accepts, stage.kind), groups)
            reached |= shared
            job = _composed(stage, own, composer)
            products = references(jobs, CHECKED)
            if composer.untrusted:
                check_untrusted(job, products, composer.untrusted)
            _check_stage(job, products)
            jobs[index] = job
    lines = [f"stage {', '.join(names)}: {line}" for line, names in problems.lines.items()] + unused(given, reached)
    if not lines:
        lines += claim_problems(node, jobs)
    if lines:
        raise ConfigError("\n".join(lines))
    return over_seeds(jobs, node)


def accepts(kind: str, key: str) -> bool:
    """Whether a stage of this kind has the key; unknown keys go to training runs, which reject them."""
    top = key.partition(".")[0].partition("/")[0].partition("@")[0]
    known = {name: {field.name for field in fields(program.config)} for name, program in PROGRAMS.items()}
    return top in known.get(kind, ()) or (kind == "train" and not any(top in names for names in known.values()))


def _composed(stage: Job, overrides: Sequence[str], composer: Composer) -> Job:
    if stage.kind == "call":
        call = OmegaConf.create(dict(stage.config["call"]))
        call.merge_with_dotlist(list(overrides))
        return replace(stage, config={"call": OmegaConf.to_container(call)})
    config, ready = composer(stage.kind, overrides)
    plain: Any = OmegaConf.to_container(config)
    plain["name"] = plain["name"] or stage.name
    return replace(stage, overrides=ready, config=plain)


def _check_stage(job: Job, products: Mapping[str, Any]) -> None:
    """Raises ConfigError with all mistakes in a stage that can be found before earlier stages have run."""
    config, _ = resolved(job, products)
    if job.kind == "call":
        check({"call": {**config["call"], "folder": str(CHECKED)}}, Call)
        return
    # Constructs the components without reading weights or rows.
    parsed(config, PROGRAMS[job.kind].config, CHECKED).trainer.check()


def check_untrusted(job: Job, products: Mapping[str, Any], untrusted: UntrustedFolder) -> None:
    """Raises ConfigError for restricted values of a stage loaded from a folder that the user has not repeated."""
    config, overrides = resolved(job, products)
    untrusted.check_overrides(overrides)
    prefix = f"stage.{job.name}."
    if job.kind != "call":
        untrusted.check(config, PROGRAMS[job.kind].config, prefix)
        return
    target = str(config["call"].get("_target_"))
    if target not in package_calls() and ("_target_", target) not in untrusted.confirmed:
        untrusted.reject([RestrictedValue("_target_", target, "calls this function")], prefix)
    untrusted.check({name: value for name, value in config["call"].items() if name != "_target_"}, Call, prefix)


@cache
def package_calls() -> frozenset[str]:
    """The functions that this package's own pipelines and experiments call."""
    nodes: list[Any] = [load_yaml(file) for file in PIPELINES.glob("*.yaml")]
    nodes += [load_yaml(file).get("pipeline") for file in EXPERIMENTS.rglob("*.yaml")]
    stages = [stage for node in nodes if isinstance(node, dict) for stage in node.get("stages", {}).values()]
    return frozenset(stage["call"] for stage in stages if isinstance(stage, dict) and "call" in stage)


def restricted_stage_values(jobs: Sequence[Job], folder: Path) -> Iterator[tuple[str, RestrictedValue]]:
    """The values that the user must repeat to resume the pipeline in `folder`, each with the name of its stage."""
    for job in jobs:
        config, _ = resolved(job, references(jobs, folder, job.seed))
        if job.kind != "call":
            yield from ((job.name, one) for one in restricted_values(config, PROGRAMS[job.kind].config))
        elif config["call"]["_target_"] not in package_calls():
            yield job.name, RestrictedValue("_target_", config["call"]["_target_"], "calls this function")


# The jobs of a sweep.


class SweepPlanner:
    """Creates the jobs for the settings of a study."""

    def __init__(self, study: Study, overrides: Sequence[str], composer: Composer, primary: str) -> None:
        """`overrides` are those of the command line; they override the study's base, and varied keys override them."""
        self.study, self.composer = study, composer
        self.shared = (*study.base, *overrides)
        self.kind: Any = next(kind for kind, program in PROGRAMS.items() if program.primary == primary)
        self.program = PROGRAMS[self.kind]
        self.numbers = count()
        self.planned: list[Mapping[str, Mapping[str, Any]] | None] = []
        """The configs of each job that is planned now, by stage; None if the job has code of the user."""

    def __call__(self, settings: Sequence[Setting], seeds: Sequence[int] | None = None) -> list[Job]:
        """A job for each setting and seed, by default those of the study. Raises one ConfigError with all problems."""
        points = [*product(settings, seeds or self.study.seeds or (None,))]
        found: list[Job] = []
        problems = Problems()
        self.planned.clear()
        for setting, seed in points:
            with problems.of(setting.label):
                found.append(self._job(setting, seed))
        lines = [line + _where(who, len(points)) for line, who in problems.lines.items()]
        known = [job for job in self.planned if job is not None]
        if len(known) == len(self.planned):
            lines += metric_problems(self.study, known)
        if lines:
            raise ConfigError("\n".join(lines))
        return found

    def types(self, overrides: Sequence[str]) -> dict[str, Any]:
        """The annotation of every key of a job with these overrides."""
        config, _ = self.composer(self.kind, [*self.shared, *overrides])
        known: Any = OmegaConf.to_container(config)
        return {each.path: each.key.annotation for each in entries(known, self.program.config)}

    def _job(self, setting: Setting, seed: int | None) -> Job:
        seeded = () if seed is None else (format_override("seed", seed),)
        name = " ".join(filter(None, [setting.label, *seeded])) or "alone"
        own = [*setting.overrides, *seeded, format_override("name", name)]
        config, ready = self.composer(self.kind, [*self.shared, *own])
        kind: Kind = "pipeline" if config.get("pipeline") else self.kind
        if kind == "pipeline":
            hashed, confirm = self._pipeline(OmegaConf.to_container(config.pipeline), ready)
        else:
            hashed, confirm = self._single(resolved_config(config), ready)
        digest, number = config_hash(hashed), next(self.numbers)
        return Job(
            name=name,
            kind=kind,
            folder=f"jobs/{number:02d}-{digest}",
            overrides=ready,
            hash=digest,
            number=number,
            settings=setting.values,
            seed=seed,
            confirm=confirm,
        )

    def _pipeline(self, node: Any, overrides: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The content to hash, and the overrides that the user must repeat to resume the job."""
        stages = plan_stages(node, overrides, self.composer)
        confirm = [
            format_override(f"stage.{name}.{one.key}", one.value)
            for name, one in restricted_stage_values(stages, CHECKED)
        ]
        self.planned.append(None if confirm else {stage.name: stage.config for stage in stages})
        return {stage.label: _hashed(stage.config) for stage in stages}, tuple(dict.fromkeys(confirm))

    def _single(self, config: Mapping[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The same for a single run."""
        if config.get("fork"):
            config = ForkPoint.parse(config["fork"]).config(config, overrides)
        if self.kind == "train" and "method" not in config:
            raise ConfigError("method: the sweep has no method; add one, as in method=ppo")
        if self.composer.untrusted:
            self.composer.untrusted.check(config, self.program.config)
        ready = parsed(config, self.program.config, CHECKED)
        confirm = [format_override(one.key, one.value) for one in restricted_values(config, self.program.config)]
        whole = settings(ready)
        self.planned.append(None if confirm else {"": whole})
        return _hashed(whole), tuple(confirm)


def _hashed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in NOT_HASHED}


def _where(names: Sequence[str], total: int) -> str:
    return f" (in all {total} jobs)" if len(names) == total and total > 1 else f" ({'; '.join(dict.fromkeys(names))})"


def in_earlier_folder(job: Job, folder: Path) -> Job:
    """The job, in the folder that an earlier session created for it, if any."""
    there = sorted((folder / "jobs").glob(f"*-{job.hash}"))
    return replace(job, folder=f"jobs/{there[0].name}") if there else job
