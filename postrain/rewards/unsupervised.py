"""Rewards without a reference answer, from the policy's own completions: agreement with the majority of the group, and
self-certainty. They reinforce what the policy already believes, right or wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar

import torch

from postrain.rewards.base import none_to_nan
from postrain.rewards.text import answer, answer_value, bare, marked_answer
from postrain.types import RewardBatch


@dataclass(frozen=True, kw_only=True)
class Majority:
    """1 if the answer is the most frequent one among the completions of the same prompt, else 0 (Zuo et al. 2025,
    TTRL, arXiv 2504.16084).

    A prompt with one completion, or without any answer, is unscorable. With a column answer, the part
    `majority_correct` is the share of completions whose group has the right majority.
    """

    model_based: ClassVar[bool] = True
    """See `is_model_based`."""
    compares_group: ClassVar[bool] = True
    """See `compares_group`."""

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        groups: dict[str, list[int]] = defaultdict(list)
        for index, prompt in enumerate(prompts):
            groups[prompt].append(index)
        answers = [canonical_answer(text) for text in completions]
        rewards: list[float | None] = [None] * len(prompts)
        correct: list[float | None] = [None] * len(prompts)
        for members in groups.values():
            voted = majority([answers[index] for index in members])
            for index, agrees in zip(members, voted, strict=True):
                rewards[index] = agrees
            if 1.0 in voted:
                expected = columns[members[0]].get("answer")
                (right,) = answer([completions[members[voted.index(1.0)]]], [expected])
                for index in members:
                    correct[index] = right
        known = {} if all(one is None for one in correct) else {"majority_correct": tuple(correct)}
        return RewardBatch(none_to_nan(rewards), {"majority": tuple(rewards), **known})


def majority(answers: Sequence[str | None]) -> list[float | None]:
    """1 for the most frequent answer, of equally frequent ones the first; 0 for others and for None.

    None for a single completion, and if nothing was answered.
    """
    votes = Counter(one for one in answers if one is not None)
    if len(answers) < 2 or not votes:
        return [None] * len(answers)
    ((winner, _),) = votes.most_common(1)
    return [float(one == winner) for one in answers]


def canonical_answer(text: str) -> str | None:
    """The final answer, the same for equal values (7 = 7.00, 3/4 = 0.75): the marked answer, as a number if it is one,
    else the last number of the text; None if there is neither."""
    value, marked = answer_value(text), marked_answer(text)
    if value is not None:
        return f"{(Decimal(value.numerator) / Decimal(value.denominator)).normalize():f}"
    return None if marked is None else bare(marked)


def certainty(completions: Sequence[str], self_certainty: Sequence[float]) -> list[float]:
    """The policy's self-certainty, the mean of KL(uniform ‖ policy) over the tokens of a completion, in nats (Zhao et
    al. 2025, INTUITOR, arXiv 2505.19590, eq. 3)."""
    return list(self_certainty)
