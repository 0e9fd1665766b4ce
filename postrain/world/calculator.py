"""A calculator environment: the policy writes an expression, the environment appends its value.

Two call formats, by configuration. In running text the policy writes `7 + 2 =` and the environment appends ` 9.`. As a
tool of an instruction model it writes `<calc>7 + 2</calc>` and the environment appends `<result>9</result>`. Supports
+ - * / and parentheses, × ÷ and x between numbers, thousands commas and currency signs. The expression is parsed, never
executed. Leaves out powers, whose results can be arbitrarily large; these, units between numbers and a single
number after a word (half of 10) are errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any

from postrain.arithmetic import evaluate
from postrain.errors import ConfigError
from postrain.types import Count, NonNegative, Step

ARITHMETIC = re.compile(r"[-+*/()\d. \t]*$")
SENTENCE_END = re.compile(r"\.(?!\d)")
PLAIN = (
    (re.compile(r"(?<=[-−])[$€£]"), ""),
    (re.compile(r"[$€£]"), " "),
    (re.compile(r"(?<=\d),(?=\d{3}(?!\d))"), ""),
    (re.compile(r"[×·]|(?<=[\d)])\s*\bx\b\s*(?=[\d(])|(?<=\d)x(?=\d)"), "*"),
    (re.compile("÷"), "/"),
    (re.compile("−"), "-"),
)
# The left operand is missing: "apples + 3". A minus directly before a number is its sign.
CUT = re.compile(r"\s*(?:[+*/]|-\s)")
# A part of more than arithmetic: "x3", "2^3", "√9".
NAME = re.compile(r"[A-Za-z_][^\s]|[\^√%!]")
# Words that calculate: "half of 10", "20% of 50".
SINGLE = re.compile(r"[-+( \t]*[\d.]+[) \t]*")
WORD = re.compile(r"\w\Z")
PERCENT = re.compile(r"%\s*of\Z")
MAX_CHARACTERS = 100
"""Length limit of an expression, so that parsing is cheap."""
MALFORMED = "error"


@dataclass(frozen=True, kw_only=True)
class Calculator:
    """Evaluates the expression before `close`."""

    open: str = ""
    """Text that begins a call; empty: the call is the arithmetic directly before `close`."""
    close: str = "="
    """Text that ends a call; generation stops there."""
    before: str = " "
    """Text before the result."""
    after: str = "."
    """Text after the result."""
    error_penalty: NonNegative = 0.0
    """Penalty subtracted from the reward for each malformed call."""
    max_turns: Count = 8
    """Maximum turns of the policy."""
    max_observation_tokens: Count = 64
    """Maximum tokens of all results in an episode."""

    def __post_init__(self) -> None:
        if not self.close:
            raise ConfigError("environment.close: expected the text that ends a call, such as = or </calc>, got none")

    @property
    def stop(self) -> tuple[str, ...]:
        """Strings at which generation stops."""
        return (self.close,)

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> None:
        """The calculator has no state."""

    def step(self, state: None, turn: str) -> Step:
        """The value of the call at the end of `turn`."""
        value = self.value(turn)
        return Step(
            f"{self.before}{MALFORMED if value is None else value}{self.after}",
            state,
            reward=-self.error_penalty if value is None else 0.0,
            error=value is None,
        )

    def value(self, turn: str) -> str | None:
        """The value of the call; None if it is malformed."""
        text = turn.rpartition(self.close)[0]
        if not self.open:
            return calculate(trailing(text))
        _, opened, inside = text.rpartition(self.open)
        return calculate(inside) if opened else None


def trailing(text: str) -> str:
    """The arithmetic at the end of a text, after the last full stop; empty if its left operand is not arithmetic, or if
    it is a single number after a word."""
    text = _plain(text[-2 * MAX_CHARACTERS :])
    found = ARITHMETIC.search(text)
    if not found:
        return ""
    *sentences, last = SENTENCE_END.split(found[0])
    before = "" if sentences else text[: found.start()]
    in_words = PERCENT.search(before) or (SINGLE.fullmatch(last) and WORD.search(before))
    return "" if in_words or CUT.match(last) or NAME.match(before[-1:] + last) else last


def calculate(expression: str) -> str | None:
    """The value of an arithmetic expression in plain notation; None if it is invalid."""
    text = _plain(expression).strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    try:
        value = evaluate(text)
        float(value)  # raises OverflowError for a number of more than 308 digits
        if value.denominator == 1:
            return str(value.numerator)
        with localcontext(prec=max(10, len(str(int(abs(value)))) + 4)):
            return f"{(Decimal(value.numerator) / value.denominator).normalize():f}"
    except (SyntaxError, ValueError, ArithmeticError):
        return None


def _plain(text: str) -> str:
    for pattern, replacement in PLAIN:
        text = pattern.sub(replacement, text)
    return text
