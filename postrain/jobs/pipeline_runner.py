"""Runs the stages of a pipeline one after the other, in one folder, skipping those that are done.

runs/pipeline/<name>/<time>-<hash>/
  pipeline.yaml   every stage as composed       status.json      summary.md  result.json  report.html   the end
  1-sft/  2-grpo/  3-sample/  ...               a folder of a run, a generation, an evaluation, or what a function wrote
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from postrain.config.check import instantiate
from postrain.config.trust import Guest, said_in
from postrain.evaluation import evaluate as evaluation
from postrain.generation import generate as generation
from postrain.jobs.pipeline_plan import Plan, Step, code_of, known, make, vet
from postrain.jobs.pipeline_summary import outcome, result, summary, table
from postrain.jobs.shared_stages import common, digests
from postrain.jobs.stage_overrides import PIPELINE_KEYS, key_of
from postrain.jsonl import atomic_write_text, number
from postrain.runs.folder import RunFolder, Status, check_contained, config_hash, new_directory, writing
from postrain.runs.interrupt import Interrupt
from postrain.runs.resume import SESSION_KEYS
from postrain.runs.status import Ending
from postrain.training import train
from postrain.types import ConfigError

EXECUTE: Mapping[str, Callable[..., float | None]] = {
    "train": train.execute,
    "generate": generation.execute,
    "evaluate": evaluation.execute,
}
# Columns the table at the end takes: where there is no terminal, rich knows of 80.
WIDTH = 104


def execute(
    config: DictConfig,
    words: Sequence[str],
    conf: Path,
    place: Path | None = None,
    *,
    group: str | None = None,
    shared: Path | None = None,
) -> float | None:
    """Runs the pipeline that `config` names, or goes on with an earlier one; returns the last stage's measure.

    `place` is where a new pipeline's folder shall be, if somebody has decided that. Of a sweep's job, `group` is what
    trackers call the sweep, and `shared` is where its jobs agree on who runs the stages they have in common.
    Raises ConfigError for a user's mistake, before the first stage where it can be told, and Interrupted.
    """
    if "RANK" in os.environ:
        raise ConfigError("pipeline: started under torchrun; start it alone, its stages bring up their own ranks")
    folder, plan = _resumed(config, words, conf) if config.resume else _new(config, words, conf, place)
    stages = Stages(plan, canonical(folder), config.allow_change, group or folder.name, shared)
    print(f"pipeline folder: {folder}", flush=True)
    whole = RunFolder(folder)
    with Interrupt(), whole.locked(), Ending(whole.status), train.reported(whole, plan.report):
        for position, step in enumerate(plan.steps, start=1):
            print(f"\nstage {position} of {len(plan.steps)}, {step.stage.name}", end="", flush=True)
            stages.advance(step)
        return _finish(plan, folder)


def _finish(plan: Plan, folder: Path) -> float | None:
    """Says what came of it, in the folder and on the console."""
    results = [result(step, folder) for step in plan.steps]
    found = outcome(plan.steps, folder)
    with writing(folder):
        atomic_write_text(folder / "summary.md", summary(results))
        if found:
            atomic_write_text(RunFolder(folder).result, json.dumps(found, indent=2) + "\n")
    Console(highlight=False, width=max(Console().width, WIDTH)).print(table(results, plan.name))
    return number(found.get("objective"))


def _new(config: DictConfig, words: Sequence[str], conf: Path, place: Path | None) -> tuple[Path, Plan]:
    """Composes, checks, and only then makes the folder."""
    name = config.name or HydraConfig.get().runtime.choices["pipeline"]
    node: Any = OmegaConf.to_container(config.pipeline)
    plan = make(node, name, words, conf, report=config.report)
    if place is None:
        place = new_directory(Path(config.paths.output), "pipeline", name, config_hash(asdict(plan)))
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    plan.save(place)
    return place, plan


def _resumed(config: DictConfig, words: Sequence[str], conf: Path) -> tuple[Path, Plan]:
    """The plan as it was saved, and with today's words where there are any: stages that are done stay as they are."""
    folder = Path(config.resume)
    check_contained(folder)
    plan, guest = Plan.load(folder), Guest(folder, said_in(words))
    for step in plan.steps:
        vet(step, known([each.stage for each in plan.steps], plan.steps, folder), guest)
    new = [word for word in words if key_of(word) not in SESSION_KEYS]
    fixed = [word for word in new if key_of(word).partition(".")[0] in PIPELINE_KEYS]
    if fixed:
        raise ConfigError(f"resume: {folder} cannot go on as {' '.join(fixed)}; start a new pipeline for that")
    if not new:
        return folder, plan
    changed = make(plan.node, plan.name, [*plan.words, *new], conf, report=plan.report and config.report, guest=guest)
    for old, step in zip(plan.steps, changed.steps, strict=True):
        if old.config != step.config and is_done(folder / step.stage.folder):
            raise ConfigError(
                f"resume: stage {step.stage.name} is done and was not done with {' '.join(new)}; start a new pipeline, "
                "or say it to a later stage: stage.NAME.seed=1, for instance"
            )
    changed.save(folder)
    return folder, changed


def is_done(folder: Path) -> bool:
    """Whether the stage in a folder has come to its end."""
    return Status(folder / "status.json").read().get("status") == "done"


def canonical(folder: Path) -> Path:
    """One way to write a folder, however it was given: it is part of what stages are told of each other."""
    path, here = folder.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


class Stages:
    """The stages of a pipeline in its folder, to be brought to their ends one after the other."""

    def __init__(self, plan: Plan, root: Path, allow_change: bool, group: str, shared: Path | None) -> None:
        self.plan, self.root, self.allow_change, self.group = plan, root, allow_change, group
        self.shared = shared and canonical(shared)
        self.digests = digests(plan.steps) if shared else {}
        # Stages read each other's folders, which hold what this command line has said of other stages.
        self.trusted = {one.item for _, one in code_of(plan, root)}

    def advance(self, step: Step) -> None:
        """Runs a stage, or what is left of it, where nobody has. Its mistakes are told with its name."""
        own = self.root / step.stage.folder
        if is_done(own):
            print(": done before", flush=True)
            return
        print(flush=True)
        try:
            # A call may look at anything, and its arguments do not say at what.
            if self.shared is None or step.stage.kind == "call":
                self.run(step, own)
                return
            with common(own, self.shared, f"{step.stage.name}-{self.digests[step.stage.name]}") as place:
                if is_done(place):
                    print(f"done by another job: {place}", flush=True)
                else:
                    self.run(step, place)
        except ConfigError as error:
            raise ConfigError(f"stage {step.stage.name}: {error}") from error

    def run(self, step: Step, folder: Path) -> None:
        """Runs a stage in its folder."""
        threads = torch.get_num_threads()
        config, words = self.plan.resolved(step, self.root)
        try:
            if step.stage.kind == "call":
                call(config, folder)
                return
            session = {"name": self.called(step, config["name"]), **self.session(step, folder)}
            EXECUTE[step.stage.kind](
                {**config, **session}, overrides=words, group=self.group, place=folder, trusted=self.trusted
            )
        finally:
            # A stage may ask for threads of its own; the next one gets what it would get by itself.
            torch.set_num_threads(threads)

    def called(self, step: Step, name: str) -> str:
        """What trackers call a stage; in a sweep its job's name is part of it, where the job is why it is like that."""
        if self.shared is None:
            return name
        steps = self.plan.steps[: self.plan.steps.index(step) + 1]
        stages = {f"stage.{each.stage.name.partition('.')[0]}." for each in steps}
        own = any(word.startswith(tuple(stages)) for word in self.plan.words)
        return f"{name} {self.plan.name if own else self.digests[step.stage.name]}"

    def session(self, step: Step, folder: Path) -> dict[str, Any]:
        """What a stage is told beside its config: whether it goes on."""
        begun = (folder / "config.yaml").is_file()
        if step.stage.kind != "evaluate":
            return {"resume": str(folder) if begun else None, "allow_change": self.allow_change}
        # An evaluation cannot be gone on with: what was left of it begins anew.
        if begun:
            shutil.rmtree(folder)
        return {}


def call(config: Mapping[str, Any], folder: Path) -> None:
    """Calls a function, which writes into its folder."""
    with writing(folder):
        folder.mkdir(exist_ok=True)
    with Ending(Status(folder / "status.json")):
        instantiate({**config["call"], "folder": str(folder)})
