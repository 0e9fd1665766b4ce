"""Tasks on sampled completions of held-out prompts: rewards, gold scores, lengths, repetition, KL divergence.

The reward may be a proxy: a rising reward with a falling gold score is reward hacking. The KL divergence is exact: it
sums over the vocabulary at each token of the model's own completions.

Axes: B completions, T tokens of a completion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.data.repetition import distinct_n, loop_share, ngrams
from postrain.evaluation.completions import by_part, compare_to_reference, complete, first_prompt, gold_scores, held_out
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.rewards.base import compares_group, nan_to_none
from postrain.rollout.collect import Rollouts
from postrain.types import Count

NO_REWARD = "needs a reward; choose one with reward=NAME"
GROUP_REWARD = "this reward compares completions of the same prompt, and an evaluation samples one of each"
NO_GOLD = "needs data with gold scores; data=world_... has them"


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """Mean reward of sampled completions, `total` and by part, and the `unscorable` share."""

    prompts: Count = 64
    """Maximum number of held-out prompts; one completion each."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        if eval_model.reward is None or compares_group(eval_model.reward):
            return EvalResult(metrics={}, notes=(GROUP_REWARD if eval_model.reward else NO_REWARD,))
        rollouts = complete(eval_model, self.prompts)
        totals = nan_to_none(rollouts.reward_B)
        scores = [{**part, "total": total} for part, total in zip(rollouts.parts, totals, strict=True)]
        unscorable = [total is None for total in totals]
        return EvalResult(
            metrics={**estimates(scores), "unscorable": Estimate.share(unscorable)},
            example=first_prompt(eval_model, rollouts),
            records=completion_records(rollouts, [{**one, "unscorable": one["total"] is None} for one in scores]),
        )


@dataclass(frozen=True, kw_only=True)
class GoldScores:
    """Mean gold score of sampled completions, `total` and by part."""

    prompts: Count = 64
    """Maximum number of held-out prompts; one completion each."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        rollouts = complete(eval_model, self.prompts)
        scores = gold_scores(rollouts, held_out(eval_model))
        if not any(scores):
            return EvalResult(metrics={}, notes=(NO_GOLD,))
        return EvalResult(
            metrics=estimates(scores),
            example=first_prompt(eval_model, rollouts),
            records=completion_records(rollouts, scores),
        )


def estimates(scores: Sequence[Mapping[str, float | None]]) -> dict[str, Estimate]:
    """The mean of each part over the completions that have it."""
    return {part: Estimate.of(values) for part, values in by_part(scores).items()}


def completion_records(rollouts: Rollouts, scores: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """One record per completion, with its text and scores."""
    texts = zip(rollouts.rows.row_ids, rollouts.prompts, rollouts.completions, scores, strict=True)
    return tuple({"row": row, "prompt": prompt, "completion": text, **own} for row, prompt, text, own in texts)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean `tokens` per completion, including the end token, and the share that is `finished`: not truncated at
    rollout.max_new_tokens."""

    prompts: Count = 64
    """Maximum number of held-out prompts; one completion each."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        rollouts = complete(eval_model, self.prompts)
        tokens = [int(own.sum()) for own in rollouts.rows.supervised]
        finished = rollouts.finished_B.tolist()
        rows = zip(rollouts.rows.row_ids, tokens, finished, strict=True)
        return EvalResult(
            metrics={"tokens": Estimate.mean(tokens, 0), "finished": Estimate.share(finished)},
            example=first_prompt(eval_model, rollouts),
            records=tuple({"row": row, "tokens": length, "finished": ended} for row, length, ended in rows),
        )


ORDERS = (1, 2, 3)
LOOPING_FROM = 0.5
"""A completion counts as looping if at least this share of its words is in one loop."""


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """`distinct_1` to `distinct_3` over all sampled completions, the mean `loop_share` of a completion's words, and
    the share of completions that are `looping`: at least half of their words are in one loop."""

    prompts: Count = 64
    """Maximum number of held-out prompts; one completion each."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        rollouts = complete(eval_model, self.prompts)
        texts = rollouts.completions
        loops = [loop_share(text) for text in texts]
        looping = [share >= LOOPING_FROM for share in loops]
        records = [{"loop_share": share, "looping": caught} for share, caught in zip(loops, looping, strict=True)]
        return EvalResult(
            metrics={
                **{f"distinct_{n}": distinct(texts, n) for n in ORDERS},
                "loop_share": Estimate.mean(loops, 0, 1),
                "looping": Estimate.share(looping),
            },
            example=first_prompt(eval_model, rollouts),
            records=completion_records(rollouts, records),
        )


def distinct(texts: Sequence[str], n: int) -> Estimate:
    """distinct-n of a set of texts with a jackknife interval; a bootstrap would be biased, since it repeats texts."""
    runs = [Counter(ngrams(text.split(), n)) for text in texts]
    everywhere = sum(runs, Counter())
    total, kinds = sum(everywhere.values()), len(everywhere)
    without = []
    for own in runs:
        # N-grams that only this text has disappear with it.
        lost = sum(everywhere[run] == count for run, count in own.items())
        left = total - sum(own.values())
        without.append((kinds - lost) / left if left else 1.0)
    return Estimate.jackknife(distinct_n(texts, n), without, 0, 1)


NEEDS_REFERENCE = (
    "needs a model to compare with; name one with reference=DIRECTORY (in training: evaluation.completions above 0)"
)

NO_TOKENS = "the model sampled no tokens, so there is nothing to compare"


@dataclass(frozen=True, kw_only=True)
class KLDivergence:
    """Exact KL(model‖reference) on sampled completions: `per_token` [nats/token] and `per_completion` [nats], and
    `reference_logp`, the mean log-probability of a sampled token under the reference [nats/token]. At the sampling
    temperature."""

    prompts: Count = 64
    """Maximum number of held-out prompts; one completion each."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        if eval_model.reference is None:
            return EvalResult(metrics={}, notes=(NEEDS_REFERENCE,))
        rollouts = complete(eval_model, self.prompts)
        found = compare_to_reference(eval_model, rollouts)
        tokens = found.mask_BT.sum(1).tolist()
        sums = found.kl_BT.cpu().double().sum(1).tolist()
        logps = (found.ref_logps_BT * found.mask_BT).cpu().double().sum(1).tolist()
        if not any(tokens):
            return EvalResult(metrics={}, notes=(NO_TOKENS,))
        rows = zip(rollouts.rows.row_ids, sums, logps, tokens, strict=True)
        return EvalResult(
            metrics={
                "per_token": Estimate.ratio(sums, tokens),
                "per_completion": Estimate.mean(sums, 0),
                "reference_logp": Estimate.ratio(logps, tokens),
            },
            example=first_prompt(eval_model, rollouts),
            records=tuple(
                {
                    "row": row,
                    "per_token": kl / max(count, 1),
                    "per_completion": kl,
                    "reference_logp": logp / max(count, 1),
                    "weight": count,
                }
                for row, kl, logp, count in rows
            ),
            notes=(eval_model.reference.description,),
        )
