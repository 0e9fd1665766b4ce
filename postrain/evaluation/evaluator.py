"""What a run measures on held-out data: before the first update, every so often, and at the end.

Two looks, for every method alike: the method's own metrics on held-out batches, and fresh completions of held-out
prompts with their reward, the world's gold score and the exact KL to the start. Prompts and seeds of the completions
are the same each time, so that two evaluations differ by the model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from postrain.data.module import DataModule
from postrain.evaluation.repetition import distinct_n
from postrain.methods.base import Method
from postrain.methods.metrics import add_metrics
from postrain.ops import derive_seed
from postrain.rollout.collect import Episodes, collect
from postrain.rollout.engine import Engine, greedy
from postrain.scoring import compare, in_micro_batches, kl_metrics
from postrain.types import Count, CountOrZero, Max, Mean

# Items measured together. Where a metric looks at a whole batch (KTO's baseline), runs with other batch sizes compare.
EVAL_BATCH = 64
Gold = Callable[[str, str, Any], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The `evaluation` group."""

    every: Count
    """Updates between evaluations; the first is before training, the last after it."""
    completions: CountOrZero
    """Held-out prompts that are continued and scored; 0 writes none."""
    shown: Count
    """How many of them are kept in samples.jsonl."""
    greedy: bool
    """Whether they are also continued greedily (temperature 0), for `eval/greedy/…`."""


@dataclass(frozen=True)
class Evaluated:
    """One evaluation."""

    metrics: Mapping[str, float]
    """`eval/…` and `gold/…`."""
    episodes: Episodes | None
    """The completions; None for a method that writes no text."""
    gold: tuple[Mapping[str, float], ...]
    """The gold score of each completion by part; empty mappings where nobody knows."""


@torch.no_grad()
def evaluate(method: Method, data: DataModule, settings: Evaluation) -> Evaluated:
    """Measures the method as it is now; changes nothing in it."""
    method.policy.eval()
    found: dict[str, Mean | Max] = {}
    for index, batch in enumerate(data.eval_batches(EVAL_BATCH)):
        add_metrics(found, method.evaluate(batch.to(method.device), index))
    metrics = {f"eval/{name}": value for name, value in method.combined(found).items()} if found else {}
    if method.head != "causal" or not settings.completions:
        return Evaluated(metrics, None, ())
    episodes = complete(method, data, settings.completions)
    gold = gold_scores(episodes, data)
    extra = episodes.metrics() if method.parts.reward else completion_metrics(episodes)
    extra = {**extra, "repetition": Mean(1 - distinct_n(episodes.completions, 3), 1)}
    sampled = {f"eval/{name}": value for name, value in (extra | kl_to_start(method, episodes)).items()}
    sampled |= {f"gold/{part}": mean for part, mean in means(gold).items()}
    if settings.greedy:
        sampled |= {
            f"eval/greedy/{name}": value for name, value in greedily(method, data, settings.completions).items()
        }
    return Evaluated(metrics | {name: value.value() for name, value in sampled.items()}, episodes, gold)


def means(gold: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    """Each part of the gold score over the completions that have it."""
    return {
        part: Mean(sum(known), len(known))
        for part in sorted({name for scores in gold for name in scores})
        if (known := [scores[part] for scores in gold if part in scores])
    }


def greedily(method: Method, data: DataModule, count: int) -> dict[str, Mean | Max]:
    """What the likeliest completions of the same prompts earn and are worth."""
    episodes = complete(method, data, count, engine=greedy(method.parts.engine))
    rewards = {name: value for name, value in episodes.metrics().items() if name == "reward/total"}
    return (rewards if method.parts.reward else {}) | dict(means(gold_scores(episodes, data)))


def complete(method: Method, data: DataModule, count: int, engine: Engine | None = None) -> Episodes:
    """Continues the first `count` held-out prompts, with the same seeds at every evaluation."""
    prompts = data.eval_prompts(count)
    keys = [derive_seed(method.parts.seed, "evaluation", place) for place in range(len(prompts))]
    parts = method.parts
    return collect(
        engine or parts.engine,
        method.policy,
        parts.template,
        prompts,
        keys=keys,
        reward=parts.reward,
        environment=parts.environment,
    )


def completion_metrics(episodes: Episodes) -> dict[str, Mean | Max]:
    """The shape of completions alone, where nothing pays for them."""
    shapes = ("completion/", "environment/")
    return {name: value for name, value in episodes.metrics().items() if name.startswith(shapes)}


def kl_to_start(method: Method, episodes: Episodes) -> dict[str, Mean | Max]:
    """How far the policy has moved from where it started, on its own completions."""
    temperature = method.parts.engine.sampling.temperature or 1.0
    found = in_micro_batches(
        lambda rows: compare(method.policy, method.reference, rows, temperature=temperature),
        episodes.rows,
        method.micro_batch_tokens,
    )
    return {name: value for name, value in kl_metrics(found).items() if name in ("kl/exact", "kl/log_ratio_max")}


def gold_scores(episodes: Episodes, data: DataModule) -> tuple[Mapping[str, float], ...]:
    """What the world says of each completion."""
    if data.gold is None:
        return tuple({} for _ in episodes.completions)
    return tuple(
        data.gold(prompt, completion, columns["gold"]) if "gold" in columns else {}
        for prompt, completion, columns in zip(episodes.prompts, episodes.completions, episodes.columns, strict=True)
    )
