"""The scorers of reasoning-gym as verifiable rewards for its tasks (data/tasks.py).

The reward is 1 or 0. The scorers give partial credit to an answer inside a longer text, which a policy would exploit,
so the answer is extracted first and only full marks count. Scorers that evaluate an answer as an expression receive
numbers and operators only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from postrain.data.tasks import COLUMN, dataset
from postrain.errors import MissingColumn
from postrain.formatting import available_columns
from postrain.rewards.base import none_to_nan
from postrain.rewards.text import last_number, marked_answer
from postrain.types import RewardBatch

Extract = Literal["number", "tags", "line", "whole"]
FULL = 0.99
EVALUATED_TASKS = ("binary_matrix", "countdown", "puzzle24", "spiral_matrix")
"""Tasks whose scorer evaluates the answer with Python or sympy."""
# A matrix or an expression, not both, since [1]*999999999 fills the memory; no powers, which may not terminate.
ARITHMETIC = re.compile(r"[\d\s.,+\-()\[\]]{1,2000}|(?!.*\*\s*\*)[\d\s.+\-*/()]{1,500}", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ReasoningGymScore:
    """1 if the scorer of the task gives the extracted answer full marks, else 0."""

    extract: Extract = "number"
    """Which part of a completion is the answer: the last number, the last <answer>, \\boxed or ####, the last line, or
    the whole text."""

    def to(self, device: Any) -> None:
        """Nothing to move."""

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        pairs = zip(completions, columns, strict=True)
        scores = tuple(
            float(any(_is_correct(answer, row) for answer in extract_answers(text, self.extract)))
            for text, row in pairs
        )
        return RewardBatch(none_to_nan(scores), {"right": scores})


def extract_answers(text: str, how: Extract) -> tuple[str, ...]:
    """The answer in a completion, in each plausible spelling; empty if there is none."""
    if how == "number":
        number = last_number(text)
        # 7.50 as written, and 7.5.
        return () if number is None else (str(number), f"{number.normalize():f}")
    if how == "tags":
        marked = marked_answer(text)
        return () if marked is None else (marked,)
    whole = text.strip()
    last = whole if how == "whole" else whole.rpartition("\n")[2].strip()
    return (last, last.removesuffix(".")) if last else ()


def _is_correct(answer: str, row: Mapping[str, Any]) -> bool:
    if COLUMN not in row:
        raise MissingColumn(
            f"reward=reasoning_gym needs the column {COLUMN}, and the prompts have {available_columns(row)}; use "
            "data=reasoning_gym or another reward"
        )
    made = row[COLUMN]
    if made["task"] in EVALUATED_TASKS and not ARITHMETIC.fullmatch(answer):
        return False
    scorer = _scorer(made["task"], json.dumps(made["settings"], sort_keys=True))
    try:
        return float(scorer.score_answer(answer, made["entry"])) >= FULL
    except (ValueError, TypeError, AttributeError):
        # Some scorers raise for an answer of an unexpected form.
        return False


@cache
def _scorer(task: str, settings: str) -> Any:
    return dataset(task, json.loads(settings), seed=0, size=1)
