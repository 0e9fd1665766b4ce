"""Verified accuracy: the share of answers that a reward finds right."""

from __future__ import annotations

from dataclasses import dataclass

from postrain.evaluation.completions import complete, first_prompt
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.evaluation.scores import written
from postrain.rewards.base import Reward, optional
from postrain.rollout.collect import Rollouts
from postrain.types import ConfigError, Count

NEEDED = "needs prompts with the column answer, or another reward; data=world_sums and data=gsm8k have it"
ROUNDING = 1e-6


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """The share of completions whose reward reaches the threshold: `greedy` of the likeliest, `sampled` of drawn ones.

    Completions that cannot be scored are left out.
    """

    reward: Reward
    """What finds an answer right."""
    threshold: float = 1.0
    """The reward from which an answer is right."""
    prompts: Count = 64
    """Held-out prompts at most; one completion of each kind."""

    def __call__(self, subject: Subject) -> Finding:
        ways = {"greedy": complete(subject, self.prompts, likeliest=True), "sampled": complete(subject, self.prompts)}
        try:
            found = {way: verdicts(rollouts, self.reward, self.threshold) for way, rollouts in ways.items()}
        except ConfigError as error:
            has_answers = any("answer" in columns for columns in ways["greedy"].columns)
            return Finding(metrics={}, notes=(str(error) if has_answers else NEEDED,))
        known = {way: [one for one in right if one is not None] for way, right in found.items()}
        if not all(known.values()):
            return Finding(metrics={}, notes=(NEEDED,))
        both = zip(found["greedy"], found["sampled"], ways["sampled"].completions, strict=True)
        return Finding(
            metrics={way: Estimate.share(right) for way, right in known.items()},
            example=first_prompt(subject, ways["greedy"]),
            records=written(
                ways["greedy"],
                [{"greedy": one, "sampled": other, "sampled_completion": said} for one, other, said in both],
            ),
        )


def verdicts(rollouts: Rollouts, reward: Reward, threshold: float) -> list[bool | None]:
    """Whether each completion is right; None where the reward cannot tell."""
    totals = optional(reward(rollouts.prompts, rollouts.completions, rollouts.columns).total_B)
    return [None if total is None else reaches(total, threshold) for total in totals]


def reaches(total: float, threshold: float) -> bool:
    """Whether a reward is as large as a threshold, but for what its type rounds away."""
    return total >= threshold - ROUNDING
