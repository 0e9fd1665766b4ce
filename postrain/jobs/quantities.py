"""Quantities of claims: which metrics the stages of a pipeline can measure, and their values by seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postrain.config.check import problems_of
from postrain.config.schema import Section
from postrain.data.repetition import collapsed
from postrain.formatting import figure
from postrain.generation.generate import SUMMARY
from postrain.jobs.claims import QUANTITY, claims_of, names_of, record
from postrain.jobs.graph import START, Job
from postrain.jsonl import number, read_json
from postrain.metrics import declared
from postrain.report.sweep_results import KL, measured
from postrain.runs.folder import RunFolder
from postrain.suggestions import suggestion
from postrain.training.diagnostic_checks import LARGE_KL

GENERATED = ("greedy", "sampled", "solved")
"""Metrics of a generation: accuracy greedy and sampled, and pass@n."""


@dataclass(frozen=True, kw_only=True)
class Reference(Section):
    """Where a pipeline's claims are published."""

    title: str
    """Title of the paper."""
    arxiv: str = ""
    """arXiv number, as a text."""
    where: str = ""
    """Tables and figures."""
    model: str = ""
    """What was trained there, on what."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Published values, by the quantity that measures the same here."""


def claim_problems(node: Mapping[str, Any], jobs: Sequence[Job]) -> Iterator[str]:
    """Messages for the mistakes in `expect` and `reference` of a pipeline with these composed stages."""
    if "expect" in node:
        for index, claim in enumerate(claims_of(node["expect"])):
            yield from _unknown_quantities(f"pipeline.expect[{index}].holds", claim.quantities, jobs)
    if "reference" in node:
        yield from _reference_problems(node["reference"], jobs)


def _reference_problems(node: Any, jobs: Sequence[Job]) -> Iterator[str]:
    if not isinstance(node, Mapping):
        yield "pipeline.reference: expected {title: ..., arxiv: ..., where: ..., model: ..., values: {...}}"
        return
    problems = [f"pipeline.reference.{problem}" for problem in problems_of(node, Reference)]
    yield from problems
    if not problems:
        yield from _unknown_quantities("pipeline.reference.values", node.get("values", {}), jobs)


def _unknown_quantities(key: str, names: Sequence[str] | Mapping[str, Any], jobs: Sequence[Job]) -> Iterator[str]:
    """Messages for quantities that no stage can measure. Whether an existing stage logs a metric is known only after
    it ran, except for tasks of an evaluation."""
    stages = {job.name: job for job in jobs}
    stages |= {f"{name}.{START}": job for name, job in stages.items() if job.kind == "train"}
    for name in names:
        stage, _, metric = name.partition("/")
        job = stages.get(stage)
        if not QUANTITY.fullmatch(name) or job is None:
            hint = suggestion(stage, stages, f"there is {', '.join(stages)}")
            yield f"{key}: {name}: no stage {stage}{hint}"
        elif expected := _other_metric(job, metric):
            yield f"{key}: {name}: stage {stage} does not measure {metric}; {expected}"


def _other_metric(job: Job, metric: str) -> str:
    """What the stage measures instead, if it certainly does not measure `metric`."""
    if job.kind == "generate":
        return "" if metric in GENERATED else f"it measures {', '.join(GENERATED)}"
    if job.kind in ("evaluate", "stress"):
        tasks = [*job.config["evaluation"]["tasks"]]
        return "" if metric.partition("/")[0] in tasks else f"its tasks are {', '.join(tasks)}"
    return "" if job.kind == "call" or declared(metric) else "no metric has this name; see docs/reference/metrics.md"


def decided(node: Mapping[str, Any], jobs: Sequence[Job], root: Path) -> dict[str, Any]:
    """The decisions on a pipeline's claims as result.json holds them; {} without claims."""
    if "expect" not in node:
        return {}
    claims, reference = claims_of(node["expect"]), node.get("reference", {})
    found = record(claims, values(names_of(claims, reference), jobs, root), reference, setup(jobs))
    for claim, one in zip(claims, found["claims"], strict=True):
        if one["decision"] != "reproduced":
            one["reason"] = "; ".join(filter(None, [one["reason"], *warning_signs(claim.quantities, jobs, root)]))
    return found


def warning_signs(names: Sequence[str], jobs: Sequence[Job], root: Path) -> Iterator[str]:
    """What the runs of these quantities suggest as a reason: collapsed completions, a policy far from its reference."""
    stages = dict.fromkeys(name.partition("/")[0].removesuffix(f".{START}") for name in names)
    for stage in stages:
        runs = [job for job in jobs if job.name == stage and job.kind == "train"]
        changes = [read_json(RunFolder(root / job.folder).result).get("changes") or {} for job in runs]
        ends = [[{name: both[end] for name, both in one.items()} for end in (0, -1)] for one in changes]
        collapses = [found for before, after in ends if (found := collapsed(before, after))]
        far = [kl for _, after in ends if (kl := number(after.get(KL)) or 0.0) > LARGE_KL]
        if collapses:
            yield f"the completions of {stage} collapsed in {len(collapses)} of {len(runs)} seeds: {collapses[0]}"
        if far:
            yield f"KL(policy‖reference) of {stage} is up to {figure(max(far))} nats/token"


def values(names: Sequence[str], jobs: Sequence[Job], root: Path) -> dict[int, dict[str, float]]:
    """The values of quantities, by seed; without those that were not measured."""
    seeds = dict.fromkeys(job.seed for job in jobs if job.seed is not None)
    found: dict[int, dict[str, float]] = {}
    for seed in seeds:
        stages = {job.name: job for job in jobs if job.seed in (None, seed)}
        known = {name: _value(name, stages, root) for name in names}
        found[seed] = {name: value for name, value in known.items() if value is not None}
    return found


def _value(name: str, stages: Mapping[str, Job], root: Path) -> float | None:
    stage, _, metric = name.partition("/")
    if stage in stages:
        return _measured(stages[stage], root).get(metric)
    before = read_json(RunFolder(root / stages[stage.removesuffix(f".{START}")].folder).result).get("changes") or {}
    return number(before[metric][0]) if before.get(metric) else None


def _measured(job: Job, root: Path) -> Mapping[str, float]:
    if job.kind != "generate":
        return measured(read_json(RunFolder(root / job.folder).result))
    summary = read_json(root / job.folder / SUMMARY)
    known = {name: number((summary.get(name) or {}).get("value")) for name in GENERATED}
    return {name: value for name, value in known.items() if value is not None}


def setup(jobs: Sequence[Job]) -> str:
    """What ran here, as in `nano; GRPO for 20 updates, SFT for 40 updates`."""
    models = dict.fromkeys(str(job.config["model"]["name"] or "") for job in jobs if "model" in job.config)
    trained: dict[str, None] = {}
    for job in jobs:
        if job.kind == "train":
            method = job.config["method"]
            epochs, updates = method.get("num_train_epochs"), method["updates"]
            count, unit = (epochs, "epoch") if epochs else (updates, "update")
            kind = str(method["_target_"]).rpartition(".")[2]
            trained[f"{kind} for {count:g} {unit}{'s' * (count != 1)}"] = None
    return "; ".join(filter(None, [", ".join(filter(None, models)), ", ".join(trained)]))
