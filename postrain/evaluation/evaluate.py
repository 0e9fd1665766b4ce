"""The evaluation command: loads each model, runs every task, writes and prints the results.

runs/evaluate/<model>/<time>-<hash>/
  evaluation_stats.json   sample_responses.json   <task>.jsonl      the results (result_files.py)
  result.json   manifest.json  config.yaml  status.json  report.html
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from postrain.config.schema import Deferred
from postrain.errors import ConfigError
from postrain.evaluation.completions import held_out, prompt_data
from postrain.evaluation.config import EvaluateConfig
from postrain.evaluation.differences import input_mismatch_notes
from postrain.evaluation.eval_model_factory import DataConversions, scoring_reward
from postrain.evaluation.eval_models import INITIAL, EvalSource
from postrain.evaluation.parts import with_parts
from postrain.evaluation.result_files import ModelResults, default_metric, responses, write_records, write_stats
from postrain.evaluation.table import tables
from postrain.evaluation.task import EvalModel, EvalResult, EvalTask
from postrain.formatting import duration
from postrain.models.by_name import resolve_by_name
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.reference import Reference
from postrain.runs.context import RunContext
from postrain.runs.folder import RunFolder

TABLE_WIDTH = 400
# Tokens per forward pass without gradients, by device.
SCORED_TOKENS = {"cpu": 2**11, "mps": 2**11, "cuda": 2**14}


class EvalTaskError(ConfigError):
    """A task failed with a user's mistake; the results of the others are written."""


def evaluate(config: EvaluateConfig, run: RunContext) -> float | None:
    """Runs the evaluation of `config`; returns the number that sweeps compare.

    Raises EvalTaskError if a task failed with a user's mistake.
    """
    config.trainer.configure_process()
    console = Console(highlight=False)
    # The run split its file into training and held-out rows by its seed: evaluate on the same held-out rows.
    origin = config.models[0].origin
    seed = origin.config["seed"] if origin else config.seed
    measured: list[ModelResults] = []
    for one in config.models:
        eval_model = load_eval_model(one, config, seed)
        audit = held_out(eval_model).audit
        if one is config.models[0]:
            run.save_manifest(config, audit, one.resolved, seeds={"seed": config.seed, "data": seed})
            console.print(
                f"data    {audit.rows_eval} rows held out from {audit.source}, template {audit.template}",
                soft_wrap=True,
            )
            console.print(f"folder  {run.folder.path}", soft_wrap=True)
        found = run_tasks(eval_model, one, config.evaluation.tasks, console, config.logged_samples, audit.source)
        write_records(run.folder, found)
        measured.append(found)
    first = measured[0]
    notes = data_mismatch_notes(config.models)
    for other in measured[1:]:
        notes += input_mismatch_notes(first.name, first.results, other.name, other.results)
    write_stats(run.folder, measured, notes, config.metric)
    # Wide enough for one column, which a narrow terminal would truncate.
    wide = Console(width=TABLE_WIDTH, highlight=False)
    for table in tables(measured, console.width if console.is_terminal else TABLE_WIDTH):
        wide.print(table)
        console.print()
    for line in [*merged_notes(measured), *notes]:
        console.print(f"note    {line}", soft_wrap=True, markup=False)
    raise_failures(measured, run.folder)
    return objective(first, config.metric)


def load_eval_model(one: EvalSource, config: EvaluateConfig, seed: int) -> EvalModel:
    """Loads a model and what is needed to evaluate it; `seed` splits the data."""
    tokenizer = load_tokenizer(one.resolved)
    data_as = DataConversions(
        data=config.data,
        resolved=one.resolved,
        context=one.resolved.context,
        completion_tokens=config.rollout.sampling.max_new_tokens + config.environment.max_observation_tokens,
        seed=seed,
    )
    torch.manual_seed(config.seed)
    hardware = config.trainer
    model = cast("nn.Module", load_causal(one.resolved, dtype=hardware.dtype)).to(hardware.device).eval()
    if config.reward is not None:
        config.reward.value.to(hardware.device)
    return EvalModel(
        name=one.name,
        model=model,
        tokenizer=tokenizer,
        template=prompt_data(data_as).chat_template,
        engine=config.rollout,
        environment=config.environment,
        reward=scoring_reward(config.reward),
        reference=load_reference(one, config, model, tokenizer),
        seed=config.seed,
        context=one.resolved.context,
        micro_batch_tokens=config.micro_batch_tokens or SCORED_TOKENS[hardware.device.type],
        data_as=data_as,
    )


def load_reference(one: EvalSource, config: EvaluateConfig, model: nn.Module, tokenizer: Any) -> Reference | None:
    """The reference model for KL, if any. Raises ConfigError if it cannot be compared with the model."""
    path = config.reference
    if path is None or (path == INITIAL and one.origin is None):
        return None
    if path == INITIAL:
        assert one.origin is not None
        found = one.origin.reference_model()
    else:
        found = resolve_by_name("reference", path, "a directory, a run folder")
    if found.head == "scalar":
        raise ConfigError(f"reference={path}: a reward model has no token log-probabilities; give a language model")
    if load_tokenizer(found).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"reference={path}: its vocabulary differs from that of {one.name}, so log-probabilities cannot be "
            "compared; give a model of the same family, or reference=null"
        )
    other = cast("nn.Module", load_causal(found, dtype=config.trainer.dtype)).to(config.trainer.device)
    return Reference(model, other.requires_grad_(False), description=f"reference: {found.name}")


def raise_failures(measured: Sequence[ModelResults], folder: RunFolder) -> None:
    """Raises EvalTaskError if a task has failed."""
    lines = [f"{name}: {note}" for one in measured for name in one.failed for note in one.results[name].notes]
    if lines:
        raise EvalTaskError(f"{'; '.join(dict.fromkeys(lines))}; the other results are in {folder.path}")


@torch.no_grad()
def run_tasks(
    eval_model: EvalModel,
    one: EvalSource,
    tasks: Mapping[str, Deferred[EvalTask]],
    console: Console,
    logged_samples: int,
    data: str,
) -> ModelResults:
    """The results of every task for one model. A failed task gets a note; the others still run."""
    results: dict[str, EvalResult] = {}
    failed: list[str] = []
    seconds: dict[str, float] = {}
    for name, task in tasks.items():
        start = time.perf_counter()
        with console.status(f"{one.name}: {name}"):
            try:
                results[name] = with_parts(task.value(eval_model), held_out(eval_model))
            except ConfigError as error:
                results[name] = EvalResult(metrics={}, notes=(str(error),))
                failed.append(name)
        seconds[name] = time.perf_counter() - start
    console.print(
        f"model   {one.name}: {len(tasks)} task{'s' * (len(tasks) != 1)} in {duration(sum(seconds.values()))}"
    )
    return ModelResults(
        name=one.name,
        path=one.path,
        data=data,
        results=results,
        seconds=seconds,
        parameters=sum(parameter.numel() for parameter in eval_model.model.parameters()),
        failed=tuple(failed),
        responses=responses(eval_model, logged_samples),
    )


def data_mismatch_notes(models: Sequence[EvalSource]) -> list[str]:
    """A note if the compared runs were trained on different data."""
    known = {one.name: data for one in models if one.origin and (data := one.origin.data()).get("fingerprint")}
    if len({data["fingerprint"] for data in known.values()}) < 2:
        return []
    each = "; ".join(f"{name} on {data.get('source')}, {str(data['fingerprint'])[:8]}" for name, data in known.items())
    return [
        f"the runs were trained on different data ({each}), so differences are not due to method and settings alone, "
        "and rows held out from one run may be in the training data of another"
    ]


def merged_notes(measured: Sequence[ModelResults]) -> list[str]:
    """The notes of all models without duplicates, with the names of the models unless all have the note."""
    names_of: dict[str, list[str]] = {}
    for one in measured:
        for name, result in one.results.items():
            for note in result.notes:
                names_of.setdefault(f"{name}: {note}", []).append(one.name)
    return [line if len(names) == len(measured) else f"{line} ({', '.join(names)})" for line, names in names_of.items()]


def objective(one: ModelResults, metric: str | None) -> float | None:
    """The number that sweeps compare. Raises ConfigError if no task has measured it."""
    numbers = {f"{name}/{key}": found for name, result in one.results.items() for key, found in result.metrics.items()}
    metric = metric or default_metric(list(numbers))
    if metric is None:
        return None
    if metric not in numbers:
        raise ConfigError(f"metric={metric}: not measured; available: {', '.join(numbers) or 'none'}")
    return numbers[metric].value
