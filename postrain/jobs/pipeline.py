"""Runs a pipeline: plans its stages, runs them in order, skips finished stages, and writes the summary.

runs/pipeline/<name>/<time>-<hash>/
  pipeline.yaml   every stage as composed       status.json      summary.md  result.json  report.html
  1-sft/  2-grpo/  3-sample/  ...               a folder of a run, a generation, an evaluation, or of a function call
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from yaml import YAMLError

from postrain.config import renamed
from postrain.config.override_text import key_of
from postrain.config.tree import SESSION, instantiate
from postrain.config.trust import UntrustedFolder, override_items
from postrain.config.yaml_file import dump_yaml, load_yaml
from postrain.errors import ConfigError
from postrain.formatting import console_table, markdown_table
from postrain.hardware.environment import refuse_ranks
from postrain.jobs import session
from postrain.jobs.graph import Job, digests, is_done, references, resolved
from postrain.jobs.lifecycle import report_on_exit
from postrain.jobs.plan import Composer, check_untrusted, plan_stages, restricted_stage_values
from postrain.jobs.quantities import decided
from postrain.jobs.shared_stages import shared_folder
from postrain.jobs.stages import PIPELINE_KEYS, over_seeds, stages_of
from postrain.jobs.summary import grid, outcome
from postrain.jsonl import atomic_write_text, number, plain
from postrain.processor import threads
from postrain.report.claims import print_claims, read_claims
from postrain.runs.folder import RunFolder, Status, check_contained, config_hash, new_directory, writing
from postrain.runs.interrupt import Interrupt
from postrain.runs.manifest import reproduce
from postrain.runs.status import StatusRecorder

FILE = "pipeline.yaml"
# Least width of the summary table in characters: without a terminal, rich assumes 80.
WIDTH = 104


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """All stages of a pipeline, as pipeline.yaml stores them for resuming.

    Configs keep their references to other stages: they are resolved against the folder when a stage starts.
    """

    name: str
    node: Mapping[str, Any]
    """The pipeline as its YAML defines it."""
    overrides: tuple[str, ...]
    """The command line."""
    jobs: tuple[Job, ...]
    report: bool = True
    """Whether report.html for all stages is written at the end."""

    def record(self) -> dict[str, Any]:
        """The content of pipeline.yaml."""
        stages = zip(over_seeds(stages_of(self.node), self.node), self.jobs, strict=True)
        steps = [{"stage": _entry(stage), "words": job.overrides, "config": job.config} for stage, job in stages]
        return {"name": self.name, "node": self.node, "words": self.overrides, "steps": steps, "report": self.report}

    def save(self, folder: Path) -> None:
        """Writes pipeline.yaml."""
        text = dump_yaml(self.record())
        with writing(folder):
            atomic_write_text(folder / FILE, f"# {reproduce(self.overrides)}\n{text}", private=True)

    @classmethod
    def load(cls, folder: Path) -> Pipeline:
        """The pipeline in `folder`. Raises ConfigError if its stages do not match its node."""
        damaged = ConfigError(f"resume: {folder / FILE} is damaged or was edited; start a new pipeline")
        try:
            saved: Any = load_yaml(folder / FILE)
            stages = over_seeds(stages_of(saved["node"]), saved["node"])
            steps, words = saved.pop("steps"), tuple(saved.pop("words"))
            jobs = tuple(
                replace(stage, overrides=tuple(step["words"]), config=renamed.config(step["config"], quiet=True))
                for step, stage in zip(steps, stages, strict=True)
            )
            loaded = cls(**saved, overrides=words, jobs=jobs)
            texts = [loaded.name, *words, *(override for job in jobs for override in job.overrides)]
            same = [step["stage"] for step in steps] == [*map(_entry, stages)]
        except (
            *(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError),
            *(YAMLError, OmegaConfBaseException),
        ):
            raise damaged from None
        if not same or not all(map(_is_whole, jobs)) or not all(isinstance(text, str) for text in texts):
            raise damaged
        return loaded


def _entry(stage: Job) -> dict[str, Any]:
    """The definition of a stage, in the types that YAML returns."""
    known = {"name": stage.name, "kind": stage.kind, "folder": stage.folder, "overrides": [*stage.overrides]}
    seed = {} if stage.seed is None else {"seed": stage.seed}
    return {**known, **seed, "call": stage.config.get("call", {})}


def _is_whole(job: Job) -> bool:
    """Whether a stage has the keys that are read before its config is checked."""
    model = job.config.get("model")
    known = job.kind != "train" or (isinstance(model, Mapping) and {"name", "path"} <= set(model))
    return known and ("call" if job.kind == "call" else "name") in job.config


def execute(
    config: DictConfig,
    overrides: Sequence[str],
    conf: Path,
    directory: Path | None = None,
    *,
    group: str | None = None,
    shared: Path | None = None,
) -> float | None:
    """Runs the pipeline that `config` names, or resumes an earlier one; returns the objective of its last stage.

    `directory` is the folder of a new pipeline; None creates one. For a job of a sweep, `group` is the sweep's name
    for trackers, and `shared` is the folder that coordinates stages common to several jobs (shared_stages.py).
    Raises ConfigError for a user's mistake, before the first stage where possible, and Interrupted.
    """
    refuse_ranks("pipeline")
    folder, pipeline = _resumed(config, overrides, conf) if config.resume else _new(config, overrides, conf, directory)
    runner = StageRunner(pipeline, canonical(folder), config.allow_change, group or folder.name, shared)
    print(f"pipeline folder: {folder}", flush=True)
    whole = RunFolder(folder)
    with Interrupt(), whole.locked(), StatusRecorder(whole.status), report_on_exit(whole, pipeline.report):
        for position, job in enumerate(pipeline.jobs, start=1):
            print(f"\nstage {position} of {len(pipeline.jobs)}, {job.label}", end="", flush=True)
            runner.advance(job)
        return _finish(pipeline, folder)


def _finish(pipeline: Pipeline, folder: Path) -> float | None:
    """Writes and prints the results of all stages."""
    columns, rows = grid(pipeline.jobs, folder)
    claims = decided(pipeline.node, pipeline.jobs, folder)
    found = outcome(pipeline.jobs, folder) | ({"claims": claims} if claims else {})
    with writing(folder):
        atomic_write_text(folder / "summary.md", markdown_table(columns, rows))
        if found:
            atomic_write_text(RunFolder(folder).result, json.dumps(plain(found), indent=2) + "\n")
    table = console_table(columns, rows, f"pipeline {pipeline.name}")
    console = Console(highlight=False, width=max(Console().width, WIDTH))
    console.print(table)
    if known := read_claims(found):
        print_claims(known, console)
    return number(found.get("objective"))


def _new(config: DictConfig, overrides: Sequence[str], conf: Path, directory: Path | None) -> tuple[Path, Pipeline]:
    """Composes and checks all stages, then creates the folder."""
    name = config.name or HydraConfig.get().runtime.choices["pipeline"]
    node: Any = OmegaConf.to_container(config.pipeline)
    jobs = plan_stages(node, overrides, Composer(conf))
    pipeline = Pipeline(name=name, node=node, overrides=tuple(overrides), jobs=jobs, report=config.report)
    if directory is None:
        directory = new_directory(Path(config.paths.output), "pipeline", name, config_hash(pipeline.record()))
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    pipeline.save(directory)
    return directory, pipeline


def _resumed(config: DictConfig, overrides: Sequence[str], conf: Path) -> tuple[Path, Pipeline]:
    """The saved pipeline with the new overrides, which must not change finished stages."""
    folder = Path(config.resume)
    check_contained(folder)
    RunFolder(folder).status.check_version()
    saved, untrusted = Pipeline.load(folder), UntrustedFolder(folder, override_items(overrides))
    for job in saved.jobs:
        check_untrusted(job, references(saved.jobs, folder, job.seed), untrusted)
    new = [override for override in overrides if key_of(override) not in SESSION]
    fixed = [override for override in new if key_of(override).partition(".")[0] in PIPELINE_KEYS]
    if fixed:
        raise ConfigError(f"resume: {folder} cannot be resumed with {' '.join(fixed)}; start a new pipeline for that")
    if not new:
        return folder, saved
    together = (*saved.overrides, *new)
    jobs = plan_stages(saved.node, together, Composer(conf, untrusted))
    for old, job in zip(saved.jobs, jobs, strict=True):
        if old.config != job.config and is_done(folder / job.folder):
            raise ConfigError(
                f"resume: stage {job.label} is finished and did not use {' '.join(new)}; start a new pipeline, "
                "or set it for a later stage, as in stage.NAME.seed=1"
            )
    changed = replace(saved, overrides=together, jobs=jobs, report=saved.report and config.report)
    changed.save(folder)
    return folder, changed


def canonical(folder: Path) -> Path:
    """A canonical spelling of a folder: configs of later stages contain it, and equal folders must hash equally."""
    path, here = folder.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


class StageRunner:
    """Runs the stages of a pipeline in this process."""

    def __init__(self, pipeline: Pipeline, root: Path, allow_change: bool, group: str, shared: Path | None) -> None:
        self.pipeline, self.root, self.allow_change, self.group = pipeline, root, allow_change, group
        self.shared = shared and canonical(shared)
        self.digests = digests(pipeline.jobs) if shared else {}
        # Stages read each other's folders; values that this command line set for any stage are trusted in all.
        self.trusted = {one.item for _, one in restricted_stage_values(pipeline.jobs, root)}

    def advance(self, job: Job) -> None:
        """Runs or resumes a stage unless it is done. Prefixes ConfigErrors with the stage's name."""
        own = self.root / job.folder
        if is_done(own):
            print(": done before", flush=True)
            return
        print(flush=True)
        try:
            # A call may read any file, so its config does not identify its result.
            if self.shared is None or job.kind == "call":
                self.run(job, own)
                return
            with shared_folder(own, self.shared, f"{job.name}-{self.digests[job.label]}") as directory:
                if is_done(directory):
                    print(f"done by another job: {directory}", flush=True)
                else:
                    self.run(job, directory)
        except ConfigError as error:
            raise ConfigError(f"stage {job.label}: {error}") from error

    def run(self, job: Job, folder: Path) -> None:
        """Runs a stage in `folder`."""
        config, overrides = resolved(job, references(self.pipeline.jobs, self.root, job.seed))
        with threads():  # restored for the next stage
            if job.kind == "call":
                call(config, folder)
                return
            known = {"name": self.tracker_name(job, config["name"]), **self.session(job, folder)}
            options = {"overrides": overrides, "group": self.group, "directory": folder, "trusted": self.trusted}
            session.execute(session.PROGRAMS[job.kind], {**config, **known}, **options)

    def tracker_name(self, job: Job, name: str) -> str:
        """The name of a stage for trackers; in a sweep, followed by the job's name if the job's overrides affect it."""
        if self.shared is None:
            return name
        upto = self.pipeline.jobs[: self.pipeline.jobs.index(job) + 1]
        stages = {f"stage.{each.name.partition('.')[0]}." for each in upto}
        own = any(override.startswith(tuple(stages)) for override in self.pipeline.overrides)
        return f"{name} {self.pipeline.name if own else self.digests[job.label]}"

    def session(self, job: Job, folder: Path) -> dict[str, Any]:
        """Config keys that make a stage resume its folder; removes an unfinished evaluation."""
        started = (folder / "config.yaml").is_file()
        if job.kind not in ("evaluate", "stress"):
            return {"resume": str(folder) if started else None, "allow_change": self.allow_change}
        # An evaluation cannot be resumed.
        if started:
            shutil.rmtree(folder)
        return {}


def call(config: Mapping[str, Any], folder: Path) -> None:
    """Calls a function with `folder`, which it writes to."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with StatusRecorder(Status(folder / "status.json")):
        instantiate({**config["call"], "folder": str(folder)})
