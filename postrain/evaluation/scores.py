"""What fresh completions earn (the reward, which may be a proxy) and what they are worth (the data's gold score): the
two numbers whose parting is reward hacking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.evaluation.completions import by_part, complete, first_prompt, gold_scores, held_out
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.rewards.base import optional
from postrain.rollout.collect import Rollouts
from postrain.types import Count

NO_REWARD = "needs a reward; choose one with reward=NAME"
NO_GOLD = "needs data that knows the true worth of a completion; data=world_... does"


@dataclass(frozen=True, kw_only=True)
class Rewards:
    """The mean reward of sampled completions, `total` and by part, and the share that cannot be scored."""

    prompts: Count = 64
    """Held-out prompts at most; one completion each."""

    def __call__(self, subject: Subject) -> Finding:
        if subject.reward is None:
            return Finding(metrics={}, notes=(NO_REWARD,))
        rollouts = complete(subject, self.prompts)
        totals = optional(rollouts.reward_B)
        scores = [{**part, "total": total} for part, total in zip(rollouts.parts, totals, strict=True)]
        unscorable = [total is None for total in totals]
        return Finding(
            metrics={**estimates(scores), "unscorable": Estimate.share(unscorable)},
            example=first_prompt(subject, rollouts),
            records=written(rollouts, [{**one, "unscorable": one["total"] is None} for one in scores]),
        )


@dataclass(frozen=True, kw_only=True)
class GoldScores:
    """The mean gold score of sampled completions, `total` and by part."""

    prompts: Count = 64
    """Held-out prompts at most; one completion each."""

    def __call__(self, subject: Subject) -> Finding:
        rollouts = complete(subject, self.prompts)
        scores = gold_scores(rollouts, held_out(subject))
        if not any(scores):
            return Finding(metrics={}, notes=(NO_GOLD,))
        return Finding(
            metrics=estimates(scores), example=first_prompt(subject, rollouts), records=written(rollouts, scores)
        )


def estimates(scores: Sequence[Mapping[str, float | None]]) -> dict[str, Estimate]:
    """The mean of each part over the completions that have it."""
    return {part: Estimate.of(values) for part, values in by_part(scores).items()}


def written(rollouts: Rollouts, scores: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], ...]:
    """A record for each completion, with its text and these numbers."""
    texts = zip(rollouts.rows.row_ids, rollouts.prompts, rollouts.completions, scores, strict=True)
    return tuple({"row": row, "prompt": prompt, "completion": said, **own} for row, prompt, said, own in texts)
