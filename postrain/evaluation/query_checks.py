"""What a hand-written query expects of an answer, and whether a text is one: pure functions of text.

All that an expectation says has to hold. Thinking before `</think>` is not part of an answer, and a marked answer
(rewards/text.py) goes before all others. Words, sentences and bullets are what rewards/constraints.py says they are.
Leaves out the running of code (query_code.py does that).
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
from postrain.rewards import constraints
from postrain.rewards.text import NUMBER, final_answer, last_number
from postrain.types import CountOrZero

MOST_LOOP, LEAST_DISTINCT = 0.2, 0.8
FENCED = re.compile(r"```\w*\s*\n?(.*?)```", re.DOTALL)
REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am) (?:very )?sorry|sorry|as an ai"
    r"|i (?:can['’]?t|cannot|am unable to|am not able to) "
    r"(?:help|assist|answer|provide|fulfill|comply|create|write|generate|give))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, kw_only=True)
class Expect(Section):
    """What an answer has to be; null asks for nothing. Phrases are sought as whole words, whatever their case."""

    exact: tuple[str, ...] | None = None
    """One of these and nothing else, but for case, quotes and marks at the ends."""
    any_of: tuple[str, ...] | None = None
    """Holds one of these phrases."""
    contains: tuple[str, ...] | None = None
    """Holds all of these phrases."""
    excludes: tuple[str, ...] | None = None
    """Holds none of these phrases."""
    mentions: tuple[tuple[str, ...], ...] | None = None
    """Of each group, holds a word that begins so."""
    regex: str | None = None
    """Python's re finds this."""
    number: float | None = None
    """The last number it writes, in digits or, where there are none, in words: for what is worked out."""
    first_number: float | None = None
    """The first number it writes: for what one knows, and may go on to explain."""
    chooses: tuple[tuple[str, ...], ...] | None = None
    """Options, each a list of its names, the right one first: the first one named (after "so" or "the answer is")."""
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
    """A JSON object with these keys, at most in a code fence."""
    case: Literal["upper", "lower", None] = None
    """All its letters are of this case."""
    without_letters: str | None = None
    """Holds none of these letters."""
    fluent: Literal[True, None] = None
    """Neither goes round in a loop nor repeats more than every fifth run of three words."""
    function: str | None = None
    """Defines a Python function that can be called as here: "add(a, b)"."""
    tests: tuple[str, ...] = ()
    """Python asserts that the function has to pass, where code may be run."""


@dataclass(frozen=True)
class Verdict:
    """What was found of an answer."""

    right: bool
    why: str
    """The expectations that were missed, or else those that were met, in words."""
    answer: str
    """What was read off it to be compared with other answers: the number, the option, or all of it, normalised."""


def check_answer(expect: Expect, said: str, passes: Callable[[str, Expect], bool] | None = None) -> Verdict:
    """Whether a text meets an expectation. `passes` runs the tests of code; without it, that code parses is enough."""
    text = without_thinking(said)
    if refuses(text):
        return Verdict(False, "refused" if text else "empty", normalised(text))
    asked = dict(_asked(expect))
    missed = [name for name, value in asked.items() if not CHECKS[name](text, value)]
    if passes and expect.function and not missed and not passes(text, expect):
        missed, asked = ["tests"], {"tests": expect.tests}
    read = extracted_answer(expect, text)
    told = "; ".join(f"{name} {_short(asked[name])}" for name in missed or asked)
    return Verdict(
        right=not missed,
        why=("missed " if missed else "met ") + told + (f" (read {read})" if has_extractable_answer(expect) else ""),
        answer=normalised(text) if read is None else read,
    )


def without_thinking(said: str) -> str:
    """What stands after the thinking."""
    return said.rpartition("</think>")[2].strip()


def has_extractable_answer(expect: Expect) -> bool:
    """Whether one answer can be read off a text, so that two texts can be compared by it."""
    return any(wanted is not None for wanted in (expect.number, expect.first_number, expect.chooses))


def extracted_answer(expect: Expect, text: str) -> str | None:
    """The number or the option that a text gives; None where it gives none, or none is asked for."""
    if expect.chooses is not None:
        return chosen_option(text, expect.chooses)
    found = first_number_in(text) if expect.number is None else last_number_in(text)
    return f"{found.normalize():f}" if found is not None and has_extractable_answer(expect) else None


def refuses(text: str) -> bool:
    """True for an empty answer, and for one that begins by saying that it cannot."""
    answer = without_thinking(text)
    return not answer or REFUSAL.match(answer) is not None


def _asked(expect: Expect) -> Iterator[tuple[str, Any]]:
    """The expectations that say something, by name."""
    values = ((field.name, getattr(expect, field.name)) for field in fields(expect))
    return ((name, value) for name, value in values if value is not None and name in CHECKS)


def _short(value: Any) -> str:
    said = f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)
    return said if len(said) <= 80 else f"{said[:77]}..."


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
    return loop_share(text) <= MOST_LOOP and distinct_ngram_share(text.casefold().split(), 3) >= LEAST_DISTINCT


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
"""Each expectation by its name in `Expect`: does a text, not empty, meet it?"""


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
# cm^2 holds no number; 180km does.
EXPONENT = re.compile(r"(?<=[a-zA-Z])\^\{?\d\}?")
UNIT = re.compile(r"(?<=\d)(?=[a-zA-Z]{1,5}\b)")
# Sums and lists that are not the answer but led to it: the 2 + 3 * 4 of "2 + 3 * 4 = 14", and [4, 5, 6].
WORKING = re.compile(r"\d[\d.,]*(?:\s*[-+−*×/÷]\s*\d[\d.,]*)+|\[[^\]]*\]")
CONCLUSION = re.compile(r"\b(?:answer is|so|therefore|thus|hence)\b", re.IGNORECASE)


def last_number_in(text: str) -> Decimal | None:
    """The last number of a text, be it in words where no digits are written; sums and lists only if there is no
    other."""
    said = _cleaned(text)
    found = last_number(WORKING.sub(" ", said))
    found = last_number(said) if found is None else found
    spelled = _spelled(said) if found is None else []
    return Decimal(spelled[-1]) if spelled else found


def first_number_in(text: str) -> Decimal | None:
    """The first number of a text, be it in words where no digits are written; "one" counts only if it is alone."""
    said = _cleaned(text)
    found = NUMBER.search(said)
    if found:
        return last_number(found[1])
    spelled = _spelled(said)
    return Decimal(next((value for value in spelled if value != 1), spelled[0])) if spelled else None


def chosen_option(text: str, options: Sequence[Sequence[str]]) -> str | None:
    """The first name of the option that is named first, in the conclusion where there is one."""
    said = final_answer(text)
    for part in (CONCLUSION.split(said)[-1], said):
        places = [(place, names[0]) for names in options if (place := find_phrase(part, names)) is not None]
        if places:
            return min(places)[1]
    return None


def normalised(text: str) -> str:
    """A text without case, without marks at its ends, and with single spaces."""
    return " ".join(text.casefold().split()).strip(" .,!?:;*`\"'“”‘’")


def find_phrase(text: str, phrases: Sequence[str]) -> int | None:
    """Where the first of some phrases begins, as whole words, whatever their case."""
    names = "|".join(map(re.escape, phrases))
    found = re.search(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE)
    return found.start() if found else None


def _cleaned(text: str) -> str:
    return UNIT.sub(" ", EXPONENT.sub("", final_answer(text)))


def _spelled(text: str) -> list[int]:
    """The numbers that are written in words, in order."""
    groups = (match.groups() for match in SPELLED.finditer(text))
    return [sum(NUMBER_WORDS[word.lower()] for word in words if word) for words in groups]
