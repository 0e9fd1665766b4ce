r"""The final answer of a worked solution, which rewards read as the column `answer`.

GSM8K writes it after `####`; MATH and most data sets of mathematics in LaTeX's `\boxed{}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FINAL_ANSWER = "####"
BOX = "\\boxed{"


def answer_columns(answer: str) -> Mapping[str, Any]:
    """Reference columns of a column `answer`: all of it as `solution`, and its part after #### as `answer`."""
    return {"answer": answer.rpartition(FINAL_ANSWER)[2].strip().replace(",", ""), "solution": answer}


def with_boxed_answer(columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns with the boxed answer of the column `solution` as `answer`, unless they have one."""
    solution = columns.get("solution")
    boxed = boxed_answer(solution) if isinstance(solution, str) and "answer" not in columns else None
    return dict(columns) if boxed is None else {**columns, "answer": boxed}


def boxed_answer(text: str) -> str | None:
    r"""The content of the last \boxed{} in a text, braces in it included; None without one, or if it is not closed."""
    start = text.rfind(BOX)
    if start < 0:
        return None
    start += len(BOX)
    level = 1
    for at in range(start, len(text)):
        level += {"{": 1, "}": -1}.get(text[at], 0)
        if level == 0:
            return text[start:at].strip()
    return None
