"""Evaluation of a method on held-out data during training.

For every method: the method's own metrics on held-out batches, and fresh completions of held-out prompts with their
reward, gold score and exact KL to the reference. Further evaluation tasks are configured in `tasks`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from postrain.config.schema import Deferred
from postrain.data.module import DataModule
from postrain.data.repetition import DISTINCT, ONE_WORD, distinct_n, distinct_text_share, one_word_share
from postrain.evaluation.completions import compare_to_reference, complete, gold_scores, means
from postrain.evaluation.differences import shares
from postrain.evaluation.parts import rows_by_part, with_parts
from postrain.evaluation.task import EvalModel, EvalResult, EvalTask
from postrain.hardware import collectives
from postrain.hardware.shares import Share
from postrain.methods.base import Method
from postrain.methods.metrics import add_metrics, kl_metrics
from postrain.models.scoring import ReferenceScores
from postrain.rewards.base import Reward, compares_group
from postrain.rollout.collect import Rollouts
from postrain.types import Count, CountOrZero, Max, Mean, PerRow


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The `evaluation` group."""

    every: Count = 25
    """Updates between evaluations. The first evaluation is before training, the last one after it."""
    completions: CountOrZero = 64
    """Number of held-out prompts to complete and score; 0 disables completions."""
    logged_samples: Count = 64
    """Number of these completions written to samples.jsonl per evaluation."""
    greedy: bool = False
    """Also complete the prompts greedily (temperature 0) and log `eval/greedy/…`."""
    tasks: Mapping[str, Deferred[EvalTask]] = field(default_factory=dict)
    """Further tasks by name, logged as `eval/<name>/…`; the options of this group add them."""


@dataclass(frozen=True)
class TrainingEvalResult:
    """The results of one evaluation during training."""

    metrics: Mapping[str, float]
    """`eval/…` and `gold/…`."""
    rollouts: Rollouts | None
    """The completions; None for a method that does not generate text."""
    gold: tuple[Mapping[str, float], ...]
    """The gold score of each completion by part; empty mappings if the data has no gold scores."""
    notes: Mapping[str, tuple[str, ...]]
    """The notes of each task."""
    rows: Mapping[str, PerRow] = field(default_factory=dict)
    """Total and count of each held-out row, completion and item of the tasks, by metric, in the order of the data."""


@torch.no_grad()
def evaluate(
    method: Method, data: DataModule, settings: Evaluation, eval_model: EvalModel | None
) -> TrainingEvalResult:
    """Evaluates the method without changing it. `eval_model` is its policy; None if it does not generate text."""
    method.policy.eval()
    metrics, rows = held_out_metrics(method, data)
    if eval_model is None:
        return TrainingEvalResult(metrics, None, (), {}, rows)
    rollouts, gold = None, ()
    if settings.completions:
        rollouts = complete(eval_model, settings.completions, prompts=data.eval_prompts(settings.completions))
        gold = gold_scores(rollouts, data)
        sampled = sampled_metrics(eval_model, rollouts, data, settings)
        sampled = {name: value for name, value in sampled.items() if value.is_known()}
        metrics |= {name: value.value() for name, value in sampled.items()}
        rows |= {name.removeprefix("eval/"): value for name, value in rows_of(sampled).items()}
    results = {name: with_parts(task.value(eval_model), data) for name, task in settings.tasks.items()}
    metrics |= {f"eval/{task}/{name}": value for task, name, value in metric_values(results)}
    rows |= task_rows(results)
    return TrainingEvalResult(metrics, rollouts, gold, {name: result.notes for name, result in results.items()}, rows)


def held_out_metrics(method: Method, data: DataModule) -> tuple[dict[str, float], dict[str, PerRow]]:
    """The method's own metrics on held-out rows, and those of each row. Each rank measures its share of each batch.

    eval/METRIC is of all rows and eval/PART/METRIC of a part; rows have these names without eval/.
    """
    found: dict[str, dict[str, Mean | Max]] = {"": {}}
    rows: list[dict[str, PerRow]] = []
    for index, (part, batch) in enumerate(data.eval_batches()):
        share = Share.of(len(batch))
        of_share = method.evaluate(batch.select(share.items).to(method.device), index, share)
        of_batch = of_share if share.counts else {}
        rows.append({})
        for prefix in [*([""] if part.in_total else []), *([f"{part.name}/"] if part.name else [])]:
            add_metrics(found.setdefault(prefix, {}), of_batch)
            rows[-1] |= {f"{prefix}{name}": value for name, value in rows_of(of_batch).items()}
    measured = set().union(*collectives.gather({prefix for prefix, metrics in found.items() if metrics}))
    combined = [(prefix, method.combined(metrics)) for prefix, metrics in found.items() if prefix in measured]
    metrics = {f"{prefix}{name}": value for prefix, each in combined for name, value in each.items()}
    known = {name: value for name, value in joined(rows).items() if name in metrics}
    return {f"eval/{name}": value for name, value in metrics.items()}, known


def joined(batches: Sequence[Mapping[str, PerRow]]) -> dict[str, PerRow]:
    """The rows of all batches by metric, given those of this rank's share of each batch."""
    found: dict[str, list[PerRow]] = defaultdict(list)
    for of_ranks in zip(*collectives.gather(batches), strict=True):
        for rows in of_ranks:
            for name, value in rows.items():
                found[name].append(value)
    return {name: (torch.cat([t for t, _ in each]), torch.cat([c for _, c in each])) for name, each in found.items()}


def rows_of(metrics: Mapping[str, Mean | Max]) -> dict[str, PerRow]:
    """Total and count of each row of the metrics that have them."""
    return {name: one.rows for name, one in metrics.items() if isinstance(one, Mean) and one.rows is not None}


def task_rows(results: Mapping[str, EvalResult]) -> dict[str, PerRow]:
    """Total and count of each item of every task's metrics that are means over their items, as TASK/METRIC."""
    found = {}
    for task, result in results.items():
        for metric in result.metrics:
            if items := shares(result, metric):
                value_B, weight_B = torch.tensor([*items.values()], dtype=torch.float64).unbind(1)
                found[f"{task}/{metric}"] = value_B * weight_B, weight_B
    return found


def metric_values(results: Mapping[str, EvalResult]) -> list[tuple[str, str, float]]:
    """Task, metric and value of every number in the results."""
    return [
        (task, name, estimate.value) for task, result in results.items() for name, estimate in result.metrics.items()
    ]


def sampled_metrics(
    eval_model: EvalModel, rollouts: Rollouts, data: DataModule, settings: Evaluation
) -> dict[str, Mean | Max]:
    """Metrics of sampled completions."""
    found, references = own_metrics(eval_model, rollouts), compare_to_reference(eval_model, rollouts)
    texts = rollouts.completions
    found = {
        **found,
        DISTINCT: Mean(distinct_text_share(texts), 1),
        ONE_WORD: Mean(one_word_share(texts), 1),
        "repetition": Mean(1 - distinct_n(texts, 3), 1),
        **reference_metrics(references),
    }
    if settings.greedy:
        found |= {
            f"greedy/{name}": value for name, value in greedy_metrics(eval_model, data, settings.completions).items()
        }
    scores = gold_scores(rollouts, data)
    gold = {f"gold/{part}": mean for part, mean in means(scores).items()}
    for name, positions in rows_by_part(rollouts.rows.row_ids, data).items():
        own = rollouts.select(positions)
        of_part = own_metrics(eval_model, own) | reference_metrics(references.select(positions))
        found |= {f"{name}/{metric}": value for metric, value in of_part.items()}
        found |= {f"{name}/gold/{part}": mean for part, mean in means([scores[at] for at in positions]).items()}
    return {f"eval/{name}": value for name, value in found.items()} | gold


def greedy_metrics(eval_model: EvalModel, data: DataModule, count: int) -> dict[str, Mean | Max]:
    """Reward and gold score of greedy completions of the same prompts."""
    rollouts = complete(eval_model, count, greedy=True, prompts=data.eval_prompts(count))
    rewards = {name: value for name, value in rollouts.metrics().items() if name == "reward/total"}
    return (rewards if scores_single(eval_model.reward) else {}) | dict(means(gold_scores(rollouts, data)))


def own_metrics(eval_model: EvalModel, rollouts: Rollouts) -> dict[str, Mean | Max]:
    """Rewards, if there are some, and lengths of completions."""
    return rollouts.metrics() if scores_single(eval_model.reward) else unrewarded_metrics(rollouts)


def scores_single(reward: Reward | None) -> bool:
    """Whether there is a reward of one completion; an evaluation samples one per prompt."""
    return reward is not None and not compares_group(reward)


def unrewarded_metrics(rollouts: Rollouts) -> dict[str, Mean | Max]:
    """Metrics of completions that do not need a reward."""
    shapes = ("completion/", "environment/")
    return {name: value for name, value in rollouts.metrics().items() if name.startswith(shapes)}


def reference_metrics(found: ReferenceScores) -> dict[str, Mean | Max]:
    """KL to the reference on the policy's own completions, and their mean log-probability under the reference:
    `reference_logp` [nats/token] drops when a policy stops writing natural language."""
    logps_BT, tokens_B = found.ref_logps_BT * found.mask_BT, found.mask_BT.sum(1)
    return {
        "kl/exact": Mean(found.kl_BT.sum(), tokens_B.sum(), rows=(found.kl_BT.sum(1), tokens_B)),
        "kl/log_ratio_max": kl_metrics(found)["kl/log_ratio_max"],
        "reference_logp": Mean(logps_BT.sum(), tokens_B.sum(), rows=(logps_BT.sum(1), tokens_B)),
    }
