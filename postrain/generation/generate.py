"""The generate command: samples and scores completions, selects rows for training, computes statistics.

runs/generate/<model>/<time>-<hash>/
  completions.jsonl   a line per prompt: completions, rewards, gold scores; appended chunk by chunk
  data.jsonl          the selected rows, for data.path=; written atomically
  summary.json        pass@1, pass@n, rewards     manifest.json  config.yaml  status.json  result.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.progress import track
from torch import nn

from postrain.data.audit import Audit
from postrain.data.encode import Encoded
from postrain.data.kinds.prompt import EncodedPrompt
from postrain.data.module import DataModule
from postrain.data.records import WrongKind
from postrain.errors import ConfigError, MissingColumn
from postrain.evaluation.eval_model_factory import scoring_reward
from postrain.formatting import figure
from postrain.generation.config import GenerateConfig
from postrain.generation.critic import Critic, FunctionCritic, ModelCritic
from postrain.generation.prompts import PromptMaker
from postrain.generation.sample import Sampler, distinct_prompts, sample
from postrain.generation.selection import AIPreferences, NoRows, PromptCompletions, RevisionPairs, Row, Selection
from postrain.generation.stats import GenerationStats, compute_stats, result, table
from postrain.generation.synthesize import save, synthesize
from postrain.jsonl import JsonLines, atomic_write_text, plain
from postrain.models.loading import load_causal, load_tokenizer
from postrain.rewards.base import PreferenceModel, Reward, is_verifiable
from postrain.rollout.engine import Reserving, greedy
from postrain.runs.context import RunContext
from postrain.runs.folder import RunFolder, writing
from postrain.runs.resume import check_data

COMPLETIONS, DATA, SUMMARY = "completions.jsonl", "data.jsonl", "summary.json"


def generate(config: GenerateConfig, run: RunContext) -> float | None:
    """Runs or resumes the generation of `config`; returns pass@1."""
    config.trainer.configure_process()
    data = copy(config.data)
    audit = _prepare(data, config)
    if isinstance(config.rollout, Reserving):
        config.rollout.reserve(data.row_tokens())
    if not config.allow_change:
        check_data(run.folder, audit)
    rows = _items(data, config.split)
    items = distinct_prompts(rows, None)
    repeated, items = len(rows) - len(items), items[: config.prompt_count]
    if config.prompts is None:
        _check_columns(scoring_reward(config.reward), items)
    notes = [f"note: {note}" for note in data.chat_template.notes]
    if repeated:
        notes.append(f"note: rows whose prompt is that of an earlier row are left out: {repeated}")
    print("\n".join([audit.render(), *notes, f"folder: {run.folder.path}"]), flush=True)
    run.save_manifest(config, audit, config.resolved, seeds={"seed": config.seed})
    if config.prompts is not None:
        return _make_prompts(config, config.prompts, data, [item.text for item in items], run.folder)
    chunks = sample(_sampler(config, data), items, JsonLines(run.folder.path / COMPLETIONS), config.chunk)
    console = Console(highlight=False)
    total = -(-len(items) // config.chunk)
    tracked = track(chunks, "sampling", total=total, console=console, disable=not console.is_terminal, transient=True)
    answers = [one for chunk in tracked for one in chunk]
    return _finish(config, answers, run.folder, console)


def _items(data: DataModule, split: str) -> Sequence[Encoded]:
    return [*(data.train if split != "eval" else ()), *(data.eval if split != "train" else ())]


def _prepare(data: DataModule, config: GenerateConfig) -> Audit:
    try:
        return data.prepare(
            kind="Prompt",
            tokenizer=load_tokenizer(config.resolved),
            context=config.resolved.context,
            completion_tokens=config.rollout.sampling.max_new_tokens + config.environment.max_observation_tokens,
            batch_size=1,
            updates=0,
            seed=config.seed,
        )
    except WrongKind as error:
        raise ConfigError(
            f"data: a generation needs prompts, but {error.source} has {error.have}; give rows such as "
            '{"prompt": "..."}, or choose another data='
        ) from None


def _check_columns(reward: Reward | None, items: Sequence[EncodedPrompt]) -> None:
    """Raises MissingColumn with the remedy if the prompts lack a column that the reward reads."""
    if reward is None or not is_verifiable(reward) or not items:
        return
    first = items[0]
    try:
        reward((first.text,), ("",), (first.columns,))
    except MissingColumn as error:
        raise MissingColumn(f"{error}; to generate without scores write '~reward' selection=none") from None
    except ConfigError:
        # It may be due to the empty completion; the sampled ones are scored later.
        return


def _make_prompts(
    config: GenerateConfig, maker: PromptMaker, data: DataModule, seeds: Sequence[str], folder: RunFolder
) -> float:
    """Samples, filters and writes prompts; returns the share that passed the filters."""
    kept, dropped = synthesize(
        maker,
        model=_model(config),
        engine=config.rollout,
        template=data.chat_template,
        seeds=seeds,
        folder=folder.path,
        seed=config.seed,
        chunk=config.chunk,
    )
    Console(highlight=False).print(save(kept, dropped, seeds, folder.path))
    print(f"data    {folder.path / DATA}")
    return len(kept) / (len(kept) + dropped.total())


def _model(config: GenerateConfig) -> nn.Module:
    torch.manual_seed(config.seed)
    hardware = config.trainer
    return cast("nn.Module", load_causal(config.resolved, dtype=hardware.dtype)).to(hardware.device)


def _sampler(config: GenerateConfig, data: DataModule) -> Sampler:
    hardware = config.trainer
    model = _model(config)
    if config.reward is not None:
        config.reward.value.to(hardware.device)
    selection = config.selection
    critic = _critic(config, data, model)
    preference = config.reward.value if config.reward is not None else None
    judge = preference if isinstance(preference, PreferenceModel) else critic
    return Sampler(
        model=model,
        engine=config.rollout,
        greedy=greedy(config.rollout) if config.greedy else None,
        data=data,
        reward=scoring_reward(config.reward),
        environment=config.environment,
        samples=config.samples,
        critic=critic if isinstance(selection, RevisionPairs) else None,
        rounds=selection.rounds if isinstance(selection, RevisionPairs) else 0,
        judge=judge if isinstance(selection, AIPreferences) else None,
        split=config.split,
        seed=config.seed,
    )


def _critic(config: GenerateConfig, data: DataModule, model: nn.Module) -> Critic:
    principles = config.constitution
    if config.critic:
        return FunctionCritic(principles=principles, function=config.critic)
    return ModelCritic(principles=principles, engine=config.rollout, model=model, template=data.chat_template)


def _finish(
    config: GenerateConfig, answers: Sequence[PromptCompletions], folder: RunFolder, console: Console
) -> float | None:
    """Writes and prints the statistics and the selected rows."""
    selection = config.selection
    rows = [selection(one) for one in answers]
    found = compute_stats(answers, config.threshold)
    kept = [row for selected in rows for row in selected]
    prompts = sum(bool(selected) for selected in rows)
    with writing(folder.path):
        summary = {**plain(asdict(found)), "kept": len(kept), "kept_prompts": prompts}
        atomic_write_text(folder.path / SUMMARY, json.dumps(summary, indent=2) + "\n")
        atomic_write_text(folder.result, json.dumps(plain(result(found)), indent=2) + "\n")
    console.print(table(found, len(kept), prompts, scored=config.reward is not None))
    if not isinstance(selection, NoRows):
        if not kept:
            raise _no_rows_error(selection, found)
        _write_rows(kept, folder.path / DATA)
        console.print(f"data    {folder.path / DATA}", soft_wrap=True)
    return found.sampled.value if found.sampled else None


def _no_rows_error(selection: Selection, found: GenerationStats) -> ConfigError:
    """The error for an empty selection: training on an empty file would fail later with less context."""
    ended = f"{found.finished:.0%} were not truncated"
    if isinstance(selection, RevisionPairs):
        return ConfigError(
            f"selection: no completion of {found.prompts} prompts was revised ({ended}); raise rollout.max_new_tokens, "
            "or lower it where request, completion, critique and revision do not fit into the model's context"
        )
    if isinstance(selection, AIPreferences):
        return ConfigError(
            f"selection: of no prompt of {found.prompts} did the critic prefer one completion by selection.margin="
            f"{selection.margin:g} ({ended}); lower it, sample more, or choose principles in which the samples differ"
        )
    best = "none could be scored" if found.best is None else f"their best rewards are {figure(found.best)} on average"
    return ConfigError(
        f"selection: no completion of {found.prompts} prompts was selected ({best}, {ended}); relax the selection "
        "(selection=all, selection.min_reward=...), sample more, or raise rollout.max_new_tokens"
    )


def _write_rows(rows: Sequence[Row], path: Path) -> None:
    """Writes the data file atomically."""
    with writing(path):
        atomic_write_text(path, "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows))
