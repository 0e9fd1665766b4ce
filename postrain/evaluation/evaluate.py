"""One evaluation, from its config to its folder: check → find the models → measure each → write, print, report.

runs/evaluate/<model>/<time>-<hash>/
  evaluation_stats.json   sample_responses.json   <measure>.jsonl   what was found (files.py)
  result.json   manifest.json  config.yaml  status.json  report.html
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console

from postrain.config.check import instantiate
from postrain.config.extras import check_packages
from postrain.config.trust import Guest, Item, said_by
from postrain.evaluation.completions import held_out
from postrain.evaluation.config import Appraisal, check_appraisal, check_model
from postrain.evaluation.differences import different_words
from postrain.evaluation.eval_models import Examinee, examinees, load
from postrain.evaluation.evaluator import Evaluation
from postrain.evaluation.inherited_settings import Origin, inherited
from postrain.evaluation.measures import Finding, Foresighted, Measure, Subject
from postrain.evaluation.result_files import Measured, decisive, responses, write_records, write_stats
from postrain.evaluation.table import table
from postrain.formatting import duration
from postrain.hardware.trainer import Hardware
from postrain.jsonl import atomic_write_text
from postrain.rollout.engine import Engine
from postrain.runs.folder import RunFolder, config_hash, new_directory, writing
from postrain.runs.interrupt import Interrupt
from postrain.runs.manifest import write_manifest
from postrain.runs.resume import settings
from postrain.runs.status import Ending
from postrain.training.train import reported
from postrain.types import ConfigError

PROGRAM = ("python", "-m", "postrain.evaluate")
WIDEST = 400


class Unmeasured(ConfigError):
    """A measure ended in a user's mistake; all others are written."""


def execute(
    config: Mapping[str, Any],
    *,
    overrides: Sequence[str],
    group: str | None,
    place: Path | None = None,
    trusted: Collection[Item] = (),
) -> float | None:
    """Measures as `config` says; returns the number that sweeps compare.

    `place` is where the folder shall be, if somebody has decided that; `group` is for trackers, and there are none.
    `trusted` is what the command line says besides `config`, of other stages of a pipeline.
    Raises ConfigError for a user's mistake, Unmeasured for one that only a measure found out, and Interrupted after
    Ctrl-C or SIGTERM.
    """
    check_model(config)
    origin = Origin.of(config["model"]["path"])
    said = said_by(config) | set(trusted)
    config, taken = inherited(config, origin, overrides)
    if origin:
        Guest(origin.folder.path, said).check({group: config[group] for group in taken}, Appraisal)
    check_appraisal(config)
    check_packages(config)
    hardware: Hardware = instantiate(config["trainer"])
    hardware.check()
    if hardware.ranks > 1:
        raise ConfigError("trainer: an evaluation runs in one process; use trainer=cpu or trainer=gpu")
    evaluation: Evaluation = instantiate(config["evaluation"])
    models = examinees(config)
    foresee(config, evaluation.measures)
    if origin and taken:
        print(f"as in {origin.folder.path}: {', '.join(taken)}; the command line can choose others", flush=True)
    folder = _folder(config, models[0], place)
    with Interrupt(), Ending(folder.status), reported(folder, config["report"]):
        with writing(folder.config):
            atomic_write_text(folder.config, OmegaConf.to_yaml(settings(config)), private=True)
        return _appraise(config, evaluation.measures, models, hardware, folder, overrides)


def foresee(config: Mapping[str, Any], measures: Mapping[str, Measure]) -> None:
    """Raises ConfigError for what measures know to fail, before anything is loaded."""
    engine: Engine = instantiate(config["rollout"])
    for measure in measures.values():
        if isinstance(measure, Foresighted):
            measure.check(engine.sampling)


def _folder(config: Mapping[str, Any], model: Examinee, place: Path | None) -> RunFolder:
    if place is None:
        name, digest = config["name"] or "evaluate", config_hash(settings(config))
        return RunFolder(new_directory(Path(config["paths"]["output"]), name, model.resolved.name, digest))
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    return RunFolder(place)


def _appraise(
    config: Mapping[str, Any],
    measures: Mapping[str, Measure],
    models: Sequence[Examinee],
    hardware: Hardware,
    folder: RunFolder,
    overrides: Sequence[str],
) -> float | None:
    hardware.settle()
    console = Console(highlight=False)
    # A run that drew its held-out rows from a file drew them by its seed: the same ones are measured on.
    seed = models[0].origin.config["seed"] if models[0].origin else config["seed"]
    measured: list[Measured] = []
    for one in models:
        subject = load(one, config, hardware, seed)
        audit = held_out(subject).audit
        if one is models[0]:
            _manifest(config, one, folder, overrides, audit.to_dict(), seed)
            console.print(
                f"data    {audit.rows_eval} rows held out from {audit.source}, template {audit.template}",
                soft_wrap=True,
            )
            console.print(f"folder  {folder.path}", soft_wrap=True)
        found = examined(subject, one, measures, console, config["shown"], audit.source)
        write_records(folder, found)
        measured.append(found)
    first = measured[0]
    notes = different_data(models)
    for other in measured[1:]:
        notes += different_words(first.name, first.findings, other.name, other.findings)
    write_stats(folder, measured, notes, config["metric"])
    # Wider than a narrow terminal rather than cut into pieces that nobody can read.
    Console(width=WIDEST, highlight=False).print(table(measured))
    console.print()
    for line in [*told_once(measured), *notes]:
        console.print(f"note    {line}", soft_wrap=True, markup=False)
    all_measured(measured, folder)
    return objective(first, config["metric"])


def all_measured(measured: Sequence[Measured], folder: RunFolder) -> None:
    """Raises Unmeasured where a measure has failed."""
    lines = [f"{name}: {note}" for one in measured for name in one.failed for note in one.findings[name].notes]
    if lines:
        raise Unmeasured(f"{'; '.join(dict.fromkeys(lines))}; all else that was measured is in {folder.path}")


@torch.no_grad()
def examined(
    subject: Subject, one: Examinee, measures: Mapping[str, Measure], console: Console, shown: int, data: str
) -> Measured:
    """Every measure of one model, told as it goes; one that fails leaves a note and stops no other."""
    findings: dict[str, Finding] = {}
    failed: list[str] = []
    seconds: dict[str, float] = {}
    for name, measure in measures.items():
        start = time.perf_counter()
        with console.status(f"{one.name}: {name}"):
            try:
                findings[name] = measure(subject)
            except ConfigError as error:
                findings[name] = Finding(metrics={}, notes=(str(error),))
                failed.append(name)
        seconds[name] = time.perf_counter() - start
    console.print(f"model   {one.name}: {len(measures)} measures in {duration(sum(seconds.values()))}")
    return Measured(
        name=one.name,
        path=one.path,
        data=data,
        findings=findings,
        seconds=seconds,
        parameters=sum(parameter.numel() for parameter in subject.model.parameters()),
        failed=tuple(failed),
        responses=responses(subject, shown),
    )


def different_data(models: Sequence[Examinee]) -> list[str]:
    """What to say where runs that are compared learned from different rows."""
    known = {one.name: data for one in models if one.origin and (data := one.origin.data()).get("fingerprint")}
    if len({data["fingerprint"] for data in known.values()}) < 2:
        return []
    each = "; ".join(f"{name} on {data.get('source')}, {str(data['fingerprint'])[:8]}" for name, data in known.items())
    return [
        f"these runs were trained on different data ({each}): their numbers differ by more than method and settings, "
        "and rows held out from one may have been learned by another"
    ]


def told_once(measured: Sequence[Measured]) -> list[str]:
    """What the measures say, by measure, with the model's name where not all of them say it."""
    said: dict[str, list[str]] = {}
    for one in measured:
        for name, finding in one.findings.items():
            for note in finding.notes:
                said.setdefault(f"{name}: {note}", []).append(one.name)
    return [line if len(names) == len(measured) else f"{line} ({', '.join(names)})" for line, names in said.items()]


def objective(one: Measured, metric: str | None) -> float | None:
    """The number that sweeps compare. Raises ConfigError where it was not measured."""
    numbers = {
        f"{name}/{key}": found for name, finding in one.findings.items() for key, found in finding.metrics.items()
    }
    metric = metric or decisive(list(numbers))
    if metric is None:
        return None
    if metric not in numbers:
        raise ConfigError(f"metric={metric}: not measured; there are: {', '.join(numbers) or 'none'}")
    return numbers[metric].value


def _manifest(
    config: Mapping[str, Any],
    one: Examinee,
    folder: RunFolder,
    overrides: Sequence[str],
    data: Mapping[str, Any],
    data_seed: int,
) -> None:
    resolved = one.resolved
    write_manifest(
        folder,
        config=config,
        overrides=overrides,
        seeds={"seed": config["seed"], "data": data_seed},
        data=data,
        model={"name": resolved.name, "source": resolved.source, "fingerprint": resolved.fingerprint},
        stand_in_for=resolved.stand_in_for,
        program=PROGRAM,
    )
