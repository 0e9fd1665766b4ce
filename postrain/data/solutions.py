r"""The final answer of a worked solution, which rewards read as the column `answer`.

GSM8K writes it after `####`; MATH and most data sets of mathematics in LaTeX's `\boxed{}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FINAL_ANSWER = "####"
BOX = "\\boxed{"
GROUPED = re.compile(r"(?<![\w,.])\d{1,3}(?:,\d{3})+(?![\w,])")
"""A number with thousands separators, such as 1,200."""


def answer_columns(answer: str) -> Mapping[str, Any]:
    """Reference columns of a column `answer`: all of it as `solution`, and its part after #### as `answer`.

    That part is without thousands separators; an answer without #### stays as it is, as "Paris, France" and (3, 4).
    """
    _, mark, final = answer.rpartition(FINAL_ANSWER)
    final = GROUPED.sub(lambda number: number[0].replace(",", ""), final) if mark else final
    return {"answer": final.strip(), "solution": answer}


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
