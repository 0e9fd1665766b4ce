"""What a run measures on held-out data: before the first update, every so often, and at the end.

Two looks, for every method alike: the method's own metrics on held-out batches, and fresh completions of held-out
prompts with their reward, the world's gold score and the exact KL to the start. Whatever else is to be measured is
asked for by name, in `measures`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from postrain.config.schema import Deferred
from postrain.data.module import DataModule
from postrain.data.repetition import DISTINCT, ONE_WORD, distinct_n, distinct_text_share, one_word_share
from postrain.evaluation.completions import compare_to_reference, complete, gold_scores, means
from postrain.evaluation.task import EvalModel, EvalResult, EvalTask
from postrain.methods.base import Method
from postrain.methods.metrics import add_metrics, kl_metrics
from postrain.rollout.collect import Rollouts
from postrain.types import Count, CountOrZero, Max, Mean


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The `evaluation` group."""

    every: Count = 25
    """Updates between evaluations; the first is before training, the last after it."""
    completions: CountOrZero = 64
    """Held-out prompts that are continued and scored; 0 writes none."""
    shown: Count = 64
    """How many of them are kept in samples.jsonl."""
    greedy: bool = False
    """Whether they are also continued greedily (temperature 0), for `eval/greedy/…`."""
    tasks: Mapping[str, Deferred[EvalTask]] = field(default_factory=dict)
    """What else is measured, by name, for `eval/<name>/…`; the options of this group put measures here."""


@dataclass(frozen=True)
class TrainingEvalResult:
    """One evaluation."""

    metrics: Mapping[str, float]
    """`eval/…` and `gold/…`."""
    rollouts: Rollouts | None
    """The completions; None for a method that writes no text."""
    gold: tuple[Mapping[str, float], ...]
    """The gold score of each completion by part; empty mappings where nobody knows."""
    notes: Mapping[str, tuple[str, ...]]
    """What the measures say beside their numbers, by their name."""


@torch.no_grad()
def evaluate(
    method: Method, data: DataModule, settings: Evaluation, eval_model: EvalModel | None
) -> TrainingEvalResult:
    """Measures the method as it is now; changes nothing in it. `eval_model` is its policy, where that writes text."""
    method.policy.eval()
    found: dict[str, Mean | Max] = {}
    for index, batch in enumerate(data.val_dataloader()):
        add_metrics(found, method.evaluate(batch.to(method.device), index))
    metrics = {f"eval/{name}": value for name, value in method.combined(found).items()} if found else {}
    if eval_model is None:
        return TrainingEvalResult(metrics, None, (), {})
    rollouts, gold = None, ()
    if settings.completions:
        rollouts = complete(eval_model, settings.completions, prompts=data.eval_prompts(settings.completions))
        gold = gold_scores(rollouts, data)
        sampled = sampled_metrics(eval_model, rollouts, data, settings)
        metrics |= {name: value.value() for name, value in sampled.items()}
    results = {name: measure.value(eval_model) for name, measure in settings.tasks.items()}
    metrics |= {f"eval/{measure}/{name}": value for measure, name, value in values(results)}
    return TrainingEvalResult(metrics, rollouts, gold, {name: result.notes for name, result in results.items()})


def values(results: Mapping[str, EvalResult]) -> list[tuple[str, str, float]]:
    """Every number that measures found: the measure, the metric, the value."""
    return [
        (measure, name, estimate.value)
        for measure, result in results.items()
        for name, estimate in result.metrics.items()
    ]


def sampled_metrics(
    eval_model: EvalModel, rollouts: Rollouts, data: DataModule, settings: Evaluation
) -> dict[str, Mean | Max]:
    """What is logged of fresh completions."""
    found = rollouts.metrics() if eval_model.reward else completion_metrics(rollouts)
    texts = rollouts.completions
    found = {
        **found,
        DISTINCT: Mean(distinct_text_share(texts), 1),
        ONE_WORD: Mean(one_word_share(texts), 1),
        "repetition": Mean(1 - distinct_n(texts, 3), 1),
        **reference_metrics(eval_model, rollouts),
    }
    if settings.greedy:
        found |= {
            f"greedy/{name}": value for name, value in greedy_metrics(eval_model, data, settings.completions).items()
        }
    gold = {f"gold/{part}": mean for part, mean in means(gold_scores(rollouts, data)).items()}
    return {f"eval/{name}": value for name, value in found.items()} | gold


def greedy_metrics(eval_model: EvalModel, data: DataModule, count: int) -> dict[str, Mean | Max]:
    """What the likeliest completions of the same prompts earn and are worth."""
    rollouts = complete(eval_model, count, greedy=True, prompts=data.eval_prompts(count))
    rewards = {name: value for name, value in rollouts.metrics().items() if name == "reward/total"}
    return (rewards if eval_model.reward else {}) | dict(means(gold_scores(rollouts, data)))


def completion_metrics(rollouts: Rollouts) -> dict[str, Mean | Max]:
    """The shape of completions alone, where nothing pays for them."""
    shapes = ("completion/", "environment/")
    return {name: value for name, value in rollouts.metrics().items() if name.startswith(shapes)}


def reference_metrics(eval_model: EvalModel, rollouts: Rollouts) -> dict[str, Mean | Max]:
    """How far the policy is from the reference on its own completions, and how likely these are under the reference:
    `reference_logp`, nats a token, falls off where a policy breaks the language."""
    found = compare_to_reference(eval_model, rollouts)
    kl = {name: value for name, value in kl_metrics(found).items() if name in ("kl/exact", "kl/log_ratio_max")}
    return {**kl, "reference_logp": Mean((found.ref_logps_BT * found.mask_BT).sum(), found.mask_BT.sum())}
