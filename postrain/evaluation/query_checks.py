"""Checks of answers to hand-written queries: pure functions of text.

An answer has to meet all expectations of its query. Text before `</think>` is ignored, and a marked answer
(rewards/text.py) takes precedence. Words, sentences and bullets are defined in rewards/constraints.py. Code is run by
query_code.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal

from postrain.config.schema import Section
from postrain.data.repetition import distinct_ngram_share, loop_share
from postrain.evaluation.query_code import defines
from postrain.formatting import shortened
from postrain.rewards import constraints
from postrain.rewards.text import NUMBER, final_answer, last_number
from postrain.types import CountOrZero

MAX_LOOP_SHARE, MIN_DISTINCT = 0.2, 0.8
FENCED = re.compile(r"```\w*\s*\n?(.*?)```", re.DOTALL)
REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very )?sorry|sorry|as an ai"
    r"|i (?:can['’]?t|cannot|am unable to|am not able to) "
    r"(?:help|assist|answer|provide|fulfill|comply|create|write|generate|give))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Expect(Section):
    """Expectations of an answer; null is not checked. Phrases match whole words and ignore case."""

    exact: tuple[str, ...] | None = None
    """Equals one of these, ignoring case, quotes and punctuation at the ends."""
    any_of: tuple[str, ...] | None = None
    """Contains one of these phrases."""
    contains: tuple[str, ...] | None = None
    """Contains all of these phrases."""
    excludes: tuple[str, ...] | None = None
    """Contains none of these phrases."""
    mentions: tuple[tuple[str, ...], ...] | None = None
    """For each group, contains a word with one of these prefixes."""
    regex: str | None = None
    """Matches this regular expression (Python's re.search)."""
    number: float | None = None
    """The last number, in digits, else in words: for computed results."""
    first_number: float | None = None
    """The first number: for facts that may be followed by an explanation."""
    chooses: tuple[tuple[str, ...], ...] | None = None
    """Options as lists of names, the correct option first. The first one named counts (after "so" or "answer is")."""
    starts_with: tuple[str, ...] | None = None
    ends_with: tuple[str, ...] | None = None
    min_words: CountOrZero | None = None
    max_words: CountOrZero | None = None
    min_sentences: CountOrZero | None = None
    max_sentences: CountOrZero | None = None
    min_paragraphs: CountOrZero | None = None
    max_paragraphs: CountOrZero | None = None
    min_bullets: CountOrZero | None = None
    max_bullets: CountOrZero | None = None
    min_lines: CountOrZero | None = None
    """Lines that are not empty."""
    max_lines: CountOrZero | None = None
    json_keys: tuple[str, ...] | None = None
    """A JSON object with these keys, optionally in a code fence."""
    case: Literal["upper", "lower", None] = None
    """All letters have this case."""
    without_letters: str | None = None
    """Contains none of these letters."""
    fluent: Literal[True, None] = None
    """At most 20 % of the words are in a loop, and at least 80 % of the trigrams are distinct."""
    function: str | None = None
    """Defines a Python function with this signature: "add(a, b)"."""
    tests: tuple[str, ...] = ()
    """Python asserts that the function has to pass, if code execution is allowed."""


@dataclass(frozen=True)
class Verdict:
    """The result of checking an answer."""

    right: bool
    why: str
    """The expectations that were missed, or else those that were met."""
    answer: str
    """The extracted answer for comparison with others: the number, the option, or the normalised text."""


def check_answer(expect: Expect, response: str, passes: Callable[[str, Expect], bool] | None = None) -> Verdict:
    """Checks a response. `passes` runs the tests of code; without it, code only has to parse."""
    text = without_thinking(response)
    if refuses(text):
        return Verdict(False, "refused" if text else "empty", normalised(text))
    expectations = dict(_set_expectations(expect))
    missed = [name for name, value in expectations.items() if not CHECKS[name](text, value)]
    if passes and expect.function and not missed and not passes(text, expect):
        missed, expectations = ["tests"], {"tests": expect.tests}
    read = extracted_answer(expect, text)
    listed = "; ".join(f"{name} {_short(expectations[name])}" for name in missed or expectations)
    return Verdict(
        right=not missed,
        why=("missed " if missed else "met ") + listed + (f" (read {read})" if has_extractable_answer(expect) else ""),
        answer=normalised(text) if read is None else read,
    )


def without_thinking(response: str) -> str:
    """The text after `</think>`."""
    return response.rpartition("</think>")[2].strip()


def has_extractable_answer(expect: Expect) -> bool:
    """Whether a single answer, a number or an option, can be extracted."""
    return any(wanted is not None for wanted in (expect.number, expect.first_number, expect.chooses))


def extracted_answer(expect: Expect, text: str) -> str | None:
    """The number or option in a text; None if it has none or none is expected."""
    if expect.chooses is not None:
        return chosen_option(text, expect.chooses)
    found = first_number_in(text) if expect.number is None else last_number_in(text)
    return f"{found.normalize():f}" if found is not None and has_extractable_answer(expect) else None


def refuses(text: str) -> bool:
    """Whether an answer is empty or begins with a refusal."""
    answer = without_thinking(text)
    return not answer or REFUSAL.match(answer) is not None


def _set_expectations(expect: Expect) -> Iterator[tuple[str, Any]]:
    """The expectations that are set, by name."""
    values = ((field.name, getattr(expect, field.name)) for field in fields(expect))
    return ((name, value) for name, value in values if value is not None and name in CHECKS)


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return shortened(text, 80)


def _mentions(text: str, groups: Sequence[Sequence[str]]) -> bool:
    return all(re.search(rf"(?<!\w)(?:{'|'.join(map(re.escape, stems))})", text, re.IGNORECASE) for stems in groups)


def _equal(found: Decimal | None, number: float) -> bool:
    return found is not None and math.isclose(float(found), number, rel_tol=1e-9)


def _has_keys(text: str, keys: Sequence[str]) -> bool:
    fenced = FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text)
    except ValueError:
        return False
    return isinstance(value, dict) and all(key in value for key in keys)


def _in_case(text: str, case: str) -> bool:
    return text.isupper() if case == "upper" else text.islower()


def _fluent(text: str, wanted: bool) -> bool:
    return loop_share(text) <= MAX_LOOP_SHARE and distinct_ngram_share(text.casefold().split(), 3) >= MIN_DISTINCT


def lines(text: str) -> int:
    """Lines that are not empty."""
    return sum(bool(line.strip()) for line in text.splitlines())


CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "exact": lambda text, phrases: normalised(text) in map(normalised, phrases),
    "any_of": lambda text, phrases: find_phrase(text, phrases) is not None,
    "mentions": _mentions,
    "regex": lambda text, pattern: re.search(pattern, text) is not None,
    "number": lambda text, number: _equal(last_number_in(text), number),
    "first_number": lambda text, number: _equal(first_number_in(text), number),
    "chooses": lambda text, options: chosen_option(text, options) == options[0][0],
    "min_lines": lambda text, least: lines(text) >= least,
    "max_lines": lambda text, most: lines(text) <= most,
    "json_keys": _has_keys,
    "case": _in_case,
    "without_letters": lambda text, letters: not set(letters.casefold()) & set(text.casefold()),
    "fluent": _fluent,
    "function": defines,
    **constraints.CHECKS,
}
"""The check of each expectation, by its name in `Expect`; texts are not empty."""


UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
NUMBER_WORDS = {word: value for value, word in enumerate(UNITS)} | {
    word: 10 * value for value, word in enumerate(TENS, start=2)
}
SPELLED = re.compile(
    rf"\b({'|'.join(TENS)})(?:[- ]({'|'.join(UNITS[1:10])}))?\b|\b({'|'.join(UNITS)})\b", re.IGNORECASE
)
# The exponent of cm^2 is not a number; the 180 of 180km is.
EXPONENT = re.compile(r"(?<=[a-zA-Z])\^\{?\d\}?")
UNIT = re.compile(r"(?<=\d)(?=[a-zA-Z]{1,5}\b)")
# Calculations and lists before the answer: the 2 + 3 * 4 of "2 + 3 * 4 = 14", and [4, 5, 6].
WORKING = re.compile(r"\d[\d.,]*(?:\s*[-+−*×/÷]\s*\d[\d.,]*)+|\[[^\]]*\]")
CONCLUSION = re.compile(r"\b(?:answer is|so|therefore|thus|hence)\b", re.IGNORECASE)


def last_number_in(text: str) -> Decimal | None:
    """The last number in digits, else in words. Numbers in calculations and lists count only if there are no others."""
    cleaned = _cleaned(text)
    found = last_number(WORKING.sub(" ", cleaned))
    found = last_number(cleaned) if found is None else found
    spelled = _spelled(cleaned) if found is None else []
    return Decimal(spelled[-1]) if spelled else found


def first_number_in(text: str) -> Decimal | None:
    """The first number in digits, else in words; "one" counts only if it is the only number word."""
    cleaned = _cleaned(text)
    found = NUMBER.search(cleaned)
    if found:
        return last_number(found[1])
    spelled = _spelled(cleaned)
    return Decimal(next((value for value in spelled if value != 1), spelled[0])) if spelled else None


def chosen_option(text: str, options: Sequence[Sequence[str]]) -> str | None:
    """The first name of the option that is named first, in the conclusion if there is one."""
    answer = final_answer(text)
    for part in (CONCLUSION.split(answer)[-1], answer):
        positions = [(at, names[0]) for names in options if (at := find_phrase(part, names)) is not None]
        if positions:
            return min(positions)[1]
    return None


def normalised(text: str) -> str:
    """A text in lower case, with single spaces, without punctuation at its ends."""
    return " ".join(text.casefold().split()).strip(" .,!?:;*`\"'“”‘’")


def find_phrase(text: str, phrases: Sequence[str]) -> int | None:
    """The position of the first of several phrases, as whole words, ignoring case; None if there is none."""
    names = "|".join(map(re.escape, phrases))
    found = re.search(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE)
    return found.start() if found else None


def _cleaned(text: str) -> str:
    return UNIT.sub(" ", EXPONENT.sub("", final_answer(text)))


def _spelled(text: str) -> list[int]:
    """The numbers written in words, in order."""
    groups = (match.groups() for match in SPELLED.finditer(text))
    return [sum(NUMBER_WORDS[word.lower()] for word in words if word) for words in groups]
