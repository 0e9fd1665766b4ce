"""Samples and scores completions of held-out prompts, for evaluation during training and for evaluation tasks.

Prompts and seeds are fixed, so that two evaluations differ only by the model. Seeds belong to prompts: the ranks of a
training run divide the prompts, the forward passes and the calls of rewards among them, and all get all results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.evaluation.task import EvalModel
from postrain.hardware.shares import Share, map_items, map_shares
from postrain.models.micro_batches import concatenated, in_micro_batches
from postrain.models.scoring import ReferenceScores, score_with_reference
from postrain.rewards.base import PreferenceModel, Reward, columns_read, nan_to_none
from postrain.rewards.function import is_finite, preview, row_label
from postrain.rewards.user_code import UserCodeErrors, source_location
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.engine import Engine
from postrain.rollout.engine import greedy as greedy_engine
from postrain.rollout.environment import SINGLE_TURN, Environment
from postrain.seeds import derive_seed
from postrain.types import Mean


def held_out(eval_model: EvalModel) -> DataModule:
    """The data as prompts."""
    return prompt_data(eval_model.data_as)


def prompt_data(data_as: Callable[[str], DataModule]) -> DataModule:
    """The data as prompts; for running text, the beginning of each text. Raises ConfigError for other data."""
    try:
        return data_as("Prompt")
    except ConfigError as error:
        try:
            return data_as("Text")
        except ConfigError:
            raise error from None


def complete(eval_model: EvalModel, count: int, *, greedy: bool = False, prompts: Prompts | None = None) -> Rollouts:
    """Completions of the first `count` held-out prompts; `prompts` are these, if already encoded.

    Cached per model, number of prompts and temperature.
    """
    engine = greedy_engine(eval_model.engine) if greedy else eval_model.engine
    key = count, engine.sampling.temperature
    if key not in eval_model.rollout_cache:
        prompts = held_out(eval_model).eval_prompts(count) if prompts is None else prompts
        eval_model.rollout_cache[key] = sample_prompts(eval_model, prompts, greedy=greedy)
    return eval_model.rollout_cache[key]


@torch.no_grad()
def sample_prompts(eval_model: EvalModel, prompts: Prompts, *, greedy: bool = False) -> Rollouts:
    """One completion of each prompt; not cached."""
    return collect_in_shares(
        greedy_engine(eval_model.engine) if greedy else eval_model.engine,
        eval_model.model,
        eval_model.template,
        prompts,
        seeds=[derive_seed(eval_model.seed, "evaluation", index) for index in range(len(prompts))],
        reward=eval_model.reward,
        environment=eval_model.environment,
    )


def collect_in_shares(
    engine: Engine,
    model: nn.Module,
    template: Template,
    prompts: Prompts,
    *,
    seeds: Sequence[int],
    reward: Reward | None = None,
    environment: Environment = SINGLE_TURN,
) -> Rollouts:
    """`collect`, with each rank sampling and scoring its share of the prompts."""

    def collected(share: Share) -> Rollouts:
        return collect(
            engine,
            model,
            template,
            prompts.select(share.items),
            seeds=[seeds[row] for row in share.items],
            reward=reward if share.counts else None,
            environment=environment,
        ).to("cpu")

    return concatenated(map_shares(len(prompts), collected)).to(next(model.parameters()).device)


@torch.no_grad()
def compare_to_reference(eval_model: EvalModel, rollouts: Rollouts) -> ReferenceScores:
    """KL and log-probabilities of the model's completions under model and reference, at the sampling temperature."""
    reference = eval_model.reference
    assert reference is not None
    temperature = eval_model.engine.sampling.temperature or 1.0

    def compared(share: Share) -> ReferenceScores:
        return in_micro_batches(
            lambda rows: score_with_reference(eval_model.model, reference, rows, temperature=temperature),
            rollouts.rows.select(share.items),
            eval_model.micro_batch_tokens,
        ).to("cpu")

    with reference.resident():
        return concatenated(map_shares(len(rollouts), compared)).to(next(eval_model.model.parameters()).device)


def gold_scores(rollouts: Rollouts, data: DataModule) -> tuple[Mapping[str, float], ...]:
    """The gold score of each completion, by part. Raises ConfigError if the function fails or returns no numbers."""
    function = data.gold_score
    if function is None:
        return tuple({} for _ in rollouts.completions)
    rows = list(zip(rollouts.prompts, rollouts.completions, rollouts.columns, strict=True))

    def scored(items: range) -> list[Mapping[str, float]]:
        return [gold_parts(function, *rows[item]) if "gold" in rows[item][2] else {} for item in items]

    return tuple(map_items(len(rows), scored, together=False))


def reward_totals(reward: Reward, prompts: Prompts | Rollouts, completions: Sequence[str]) -> list[float | None]:
    """The reward of each completion; None if it cannot be scored, as by a reward that reads how it was sampled."""
    if columns_read(reward):
        return [None] * len(completions)
    texts = prompts.prompts if isinstance(prompts, Rollouts) else prompts.texts

    def scored(items: range) -> Sequence[float | None]:
        columns = [prompts.columns[item] for item in items]
        found = reward([texts[item] for item in items], [completions[item] for item in items], columns)
        return nan_to_none(found.total_B)

    return map_items(len(completions), scored, together=False)


def preferences(judge: PreferenceModel, ours: Rollouts, theirs: Rollouts) -> list[float | None]:
    """P(our completion beats theirs) for each prompt; None if the comparison failed."""

    def compared(items: range) -> Sequence[float | None]:
        mine, other = ours.select(items), theirs.select(items)
        return nan_to_none(judge.compare(mine.prompts, mine.completions, other.completions, mine.columns))

    return map_items(len(ours), compared, together=False)


def gold_parts(
    function: Callable[..., Mapping[str, float]], prompt: str, completion: str, columns: Mapping[str, Any]
) -> dict[str, float]:
    who = f"data.gold: {function.__module__}.{getattr(function, '__qualname__', function)}"
    row = row_label(0, [prompt], [columns])
    with UserCodeErrors(f"{who} raised", source_location(function)[0], lambda: f" on {row}"):
        found: Any = function(prompt, completion, columns["gold"])
    if not isinstance(found, Mapping) or not all(map(is_finite, found.values())):
        raise ConfigError(f"{who}: returned {preview(found)} for {row}; expected finite numbers by name")
    return {str(part): float(value) for part, value in found.items()}


def means(gold: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    """The mean of each part of the gold score over the completions that have it."""
    return {part: Mean.of_known([one.get(part) for one in gold]) for part in by_part(gold)}


def by_part(scores: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    """The known scores of each part."""
    parts = sorted({name for one in scores for name in one})
    known = {part: [value for one in scores if (value := one.get(part)) is not None] for part in parts}
    return {part: values for part, values in known.items() if values}


def decoded_prompt(eval_model: EvalModel, ids: torch.Tensor) -> str:
    """The model input as text, including special tokens."""
    return eval_model.template.decode_all(ids.tolist())


def first_prompt(eval_model: EvalModel, rollouts: Rollouts) -> str:
    """The exact model input of the first prompt."""
    supervised_L = rollouts.rows.supervised[0].long()
    at = int(supervised_L.argmax()) if int(supervised_L.max()) else len(supervised_L)
    return decoded_prompt(eval_model, rollouts.rows.ids[0][:at])
