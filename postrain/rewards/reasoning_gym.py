"""reasoning-gym's own scorers as a reward for its tasks (data/tasks.py).

Right or wrong: the scorers pay a share for an answer of the wrong form that holds the right one, which a policy would
learn to live on, so the answer is found here first, and only full marks count. Scorers that take an answer for an
expression get nothing but numbers and signs to work out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from postrain.data.tasks import COLUMN, dataset
from postrain.errors import ConfigError
from postrain.rewards.base import none_to_nan
from postrain.rewards.text import last_number, marked_answer
from postrain.types import RewardBatch

Extract = Literal["number", "tags", "line", "whole"]
FULL = 0.99
WORKED_OUT = ("binary_matrix", "countdown", "puzzle24", "spiral_matrix")
"""Tasks whose scorer hands the answer to Python's or sympy's parser."""
# A matrix, or a sum. Not both, since [1]*999999999 fills the memory; nor powers, which take for ever.
ARITHMETIC = re.compile(r"[\d\s.,+\-()\[\]]{1,2000}|(?!.*\*\s*\*)[\d\s.+\-*/()]{1,500}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ReasoningGymScore:
    """Pays 1 where the task's scorer gives the extracted answer full marks, else 0."""

    extract: Extract = "number"
    """Where the answer stands in a completion: its last number, its last <answer>, \\boxed or ####, its last line, or
    the whole of it."""

    def to(self, device: Any) -> None:
        """Nothing to move."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        pairs = zip(completions, columns, strict=True)
        paid = tuple(float(any(_right(said, row) for said in extracted(text, self.extract))) for text, row in pairs)
        return RewardBatch(none_to_nan(paid), {"right": paid})


def extracted(text: str, how: Extract) -> tuple[str, ...]:
    """The answer in a completion, in each way of writing it that may be meant; none where there is none."""
    if how == "number":
        number = last_number(text)
        # 7.50 as it was written, and 7.5.
        return () if number is None else (str(number), f"{number.normalize():f}")
    if how == "tags":
        marked = marked_answer(text)
        return () if marked is None else (marked,)
    whole = text.strip()
    last = whole if how == "whole" else whole.rpartition("\n")[2].strip()
    return (last, last.removesuffix(".")) if last else ()


def _right(said: str, row: Mapping[str, Any]) -> bool:
    if COLUMN not in row:
        raise ConfigError(
            f"reward=reasoning_gym needs the column {COLUMN}, and the data has only {', '.join(row) or 'none'}; use "
            "data=reasoning_gym or another reward"
        )
    made = row[COLUMN]
    if made["task"] in WORKED_OUT and not ARITHMETIC.fullmatch(said):
        return False
    scorer = _scorer(made["task"], json.dumps(made["settings"], sort_keys=True))
    try:
        return float(scorer.score_answer(said, made["entry"])) >= FULL
    except (ValueError, TypeError, AttributeError):
        # What some scorers raise at an answer of another form than theirs.
        return False


@cache
def _scorer(task: str, settings: str) -> Any:
    return dataset(task, json.loads(settings), seed=0, size=1)
