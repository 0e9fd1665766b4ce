"""Extraction of the final answer of a completion, and verifiable rewards that need only text and a column or two.

Answers are marked by `<answer>…</answer>`, LaTeX's boxed or GSM8K's `#### 72`; else the last number counts. The rewards
are pure functions for `reward=function`, in TRL's signature. None means unscorable: the row has no answer, or a blank
one. A list as the answer holds spellings, each of which is right. Answers that
need a library or a computation to verify are in verified.py, constraints on the form of a text in constraints.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction

from postrain.data.repetition import distinct_ngram_share
from postrain.errors import ConfigError

Expected = str | float | Sequence[str | float] | None
"""The answer of a row, or a list of spellings of it."""
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+"
# A number next to a letter is a name (room 4b); a minus after a digit is a dash (pages 10-12). Exponents have at most
# three digits: Decimal rejects some longer ones.
NUMBER = re.compile(rf"(?<!\w)(?<!\d\.)([-+−]?(?:{DIGITS})(?:[eE][-+]?\d{{1,3}})?)(?!\w|\.\d)")
# "####" is also a Markdown heading: only a number alone after it is an answer.
MARKS = re.compile(
    r"<answer>(?P<tag>(?:(?!<answer>).)*?)</answer>"
    r"|\\boxed\{(?P<box>(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}"
    rf"|^####[ \t]*\$?(?P<hash>[-+−]?(?:{DIGITS}))\.?[ \t]*$",
    re.DOTALL | re.MULTILINE,
)

FRACTION = re.compile(r"(?<![\w.,/])([-+−]?\d{1,30})\s?/\s?([-−]?0{0,9}[1-9]\d{0,29})(?![\w/]|[.,]\d)")
QUANTITY = re.compile(f"{FRACTION.pattern}|{NUMBER.pattern}")
MACRO = r"\\(?:text|textbf|mathbf|mathrm|mbox)"
TEXT = MACRO + r"\{([^{}]*)\}"
UNIT = r"(?:[cdkm]m|ft|yd|mi|units?|inch(?:es)?|feet|(?:centi|milli|kilo)?met(?:er|re)s?|miles?|yards?)"
BLANK = r"(?:\s|~|\\[,;: ])"
# In running text, m and in may be a variable and a word.
AREA = rf"(?:{BLANK}*{MACRO}\{{[\s~]*({UNIT}|m|in)\s*\}}|{BLANK}+({UNIT}))"
POWER = r"(?:\^\{?\s*([23])(?!\d)(?:\s*\})?|([²³]))"
MEASURE = re.compile(rf"(\d){AREA}\s*{POWER}")
LATEX_FRACTION = re.compile(
    r"(?:(?<![\w)}])([-+−]))?(?<![\d.,])(\d{0,9})[ \t~]?\\[cdt]?frac\s*"
    r"(?:\{\s*(?:([-+−])\s*)?(\d+)\s*\}|(\d))\s*(?:\{\s*(?:([-+−])\s*)?(\d+)\s*\}|(\d))"
)
APPROXIMATELY = re.compile(r"\\(?:thick)?(?:approx|sim|simeq|cong)(?![A-Za-z])|[∼≃≅]")
# Markup that does not change the value of a number, and powers of ten as 6.02e23.
MARKUP = (
    (re.compile(r"(?<![\w)*])(\*{1,3}|`)(?=[^\s*])([^*`]+)\1(?![\w*(])"), r"\2"),
    (re.compile(r"(?<=\d)\s*(?:\\times|\\cdot|[x×·*])\s*10\s*\^\s*\{?\s*([-+]?\d{1,3})(?!\d)(?:\s*\})?"), r"e\1"),
    (MEASURE, r"\1 \2\3 "),
    (re.compile(TEXT), r" \1 "),
    (re.compile(r"\\[cdt]frac"), r"\\frac"),
    (APPROXIMATELY, " ≈ "),
    (re.compile(r"\\!|\\(?:left|right)(?![A-Za-z])|\^\{?\\circ\}?"), ""),
    (re.compile(r"(?<=\d)\\[,;: ](?=\d{3}(?!\d))"), ""),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\([$%€£])"), r"\1"),
    (re.compile(r"\\[,;: ()\[\]]"), " "),
    (re.compile(r"([-−])[$€£]"), r"\1"),
    (re.compile(r"[$€£]"), " "),
)
MINUS = ("-", "−")
EMPHASIS = re.compile(r"\A(\*{1,3}|`)([^*`]+)\1\Z")
SPACED = re.compile(r" ?([^\w\s]) ?")
# "n!" is not n.
ENDING = re.compile(r"(?<![.,;:?])(?:[.,;:?]|(?<=[^\W\d_]{2})!+)+\Z")
QUOTED = re.compile(r"\A[\"'“”‘’«»](.+)[\"'“”‘’«»]\Z", re.DOTALL)
# A word or an option letter in list markers, quotes or brackets: "- yes", "(iv).", "**B"; not "-x", "C++" or "n!".
LABEL = re.compile(
    r"(?=.*[^\W\d_])(?:[-=]> ?|#+ |\.{3}|[-+>] (?=[^\W\d_]{2}|[A-E]\b)|[:…\"'“”‘’«»(\[*_` ])*"
    r"(<)?([^\W_]+(?:[-'’ ][^\W_]+)*)(?(1)>)"
    r"(?:[.,;:…\"“”’«»)\]_` ]|\*\*|\?!*|(?<=[^\W\d_]{2})['!]+)*"
)
# "x = 5", "≈ 5" and "48 + 24 = 72" are 5, 5 and 72; the equation of a curve is not a number.
LEFT_SIDE = re.compile(r"\s*(?:[^\W\d]\w*|[^A-Za-z\\,]*)\s*[=≈]")
# What makes more of a number than its value with a unit: "2 + x", "x^2", "x-3", "1/\sqrt{2}".
OPERATORS = re.compile(r"[\\^_√+*=≈≠≉≁≄≇<>≤≥±]|[-−/]\s*\0|\0\s*[-−]")


def marked_answer(text: str) -> str | None:
    """The content of the last answer mark in a text, of a mark inside a tag if there is one; None without a mark."""
    marks = list(MARKS.finditer(text))
    if not marks:
        return None
    found = marks[-1][marks[-1].lastgroup or 0].strip()
    inner = marked_answer(found) if marks[-1].lastgroup == "tag" else None
    return EMPHASIS.sub(r"\2", found) if inner is None else inner


def final_answer(text: str) -> str:
    """The marked answer, or else the whole text."""
    marked = marked_answer(text)
    return text.strip() if marked is None else marked


def last_number(text: str) -> Decimal | None:
    """The last number in a text, with thousands commas and exponents; None if there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None


def single_number(text: str) -> Fraction | None:
    """The value of a text that is one number or fraction, with a unit or currency or without; None for any other text,
    such as a pair, a date or 5√3."""
    text = LEFT_SIDE.sub("", _without_markup(text), count=1)
    found = list(QUANTITY.finditer(text))
    alone = len(found) == 1 and not OPERATORS.search(QUANTITY.sub("\0", text))
    return _value(found[0]) if alone else None


def answer_value(text: str) -> Fraction | None:
    """The value of a completion's final answer: of the marked answer if that is one number, or of the last number or
    fraction of a text without marks."""
    marked = marked_answer(text)
    if marked is not None:
        return single_number(marked)
    found = list(QUANTITY.finditer(_without_markup(text)))
    return _value(found[-1]) if found else None


def _without_markup(text: str) -> str:
    text = LATEX_FRACTION.sub(_fraction, text)
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text


def _fraction(found: re.Match[str]) -> str:
    r"""A fraction in LaTeX as a/b, with the sign in front; a mixed number, 1\frac{1}{2}, as 3/2."""
    sign, whole, sign_above, above, digit_above, sign_below, below, digit_below = (one or "" for one in found.groups())
    above, below = above + digit_above, below + digit_below
    if whole and len(above + below) < 19 and not sign_above + sign_below:
        above, whole = str(int(whole) * int(below) + int(above)), ""
    negative = sum(one in MINUS for one in (sign, sign_above, sign_below)) % 2
    return f" {'-' if negative else ''}{f'{whole} ' if whole else ''}{above}/{below}"


def _value(quantity: re.Match[str]) -> Fraction:
    above, below, number = quantity.groups()
    value = Decimal((above or number).replace(",", "").replace("−", "-"))
    return Fraction(value) / int((below or "1").replace("−", "-"))


def spellings(expected: Expected) -> list[str]:
    """The final answers of a row, without blank ones and NaN, a missing value of pandas."""
    listed = expected if isinstance(expected, list | tuple) else [expected]
    return [found for one in listed if one is not None and one == one and (found := final_answer(str(one)))]


def _any_equal(
    equals: Callable[[str, str], bool], completions: Sequence[str], answer: Sequence[Expected]
) -> list[float | None]:
    """1 if a completion equals an answer of its row."""
    rows = zip(completions, map(spellings, answer), strict=True)
    return [float(any(equals(text, one) for one in right)) if right else None for text, right in rows]


def exact(completions: Sequence[str], answer: Sequence[Expected]) -> list[float | None]:
    """1 if the final answer (marked, or the whole completion) equals the row's, ignoring case and outer white space."""
    return _any_equal(lambda text, expected: final_answer(text).casefold() == expected.casefold(), completions, answer)


def numeric(completions: Sequence[str], answer: Sequence[Expected]) -> list[float | None]:
    """1 if the last number of the final answer equals that of the row's answer (7 = 7.0 = 7.00).

    A row whose answer has no number is unscorable.
    """
    numbers = [[one for one in spellings(expected) if last_number(one) is not None] for expected in answer]
    return _any_equal(
        lambda text, expected: last_number(final_answer(text)) == last_number(expected), completions, numbers
    )


def answer(completions: Sequence[str], answer: Sequence[Expected]) -> list[float | None]:
    """1 if the final answer equals the row's: by value if the row's is one number (7 = 7.00 = $7 = \\approx 7,
    -3/4 = \\frac{3}{-4} = -0.75), else as a text.

    Texts are compared as by `exact`, without the punctuation and markup around them: "- Positive." is positive, and (b)
    or \\text{B} is B. Symbols count: C++ is not C, and 25 cm^2 is 25 but not 25 cm^3. Without a mark, the last number
    or fraction of a completion is its answer.
    """
    return _any_equal(_equals, completions, answer)


def _equals(completion: str, expected: str) -> bool:
    value, given = single_number(expected), final_answer(completion)
    if value is None:
        return bare(given) == bare(expected)
    return answer_value(completion) == value and len(_powers(given) | _powers(expected)) < 2


def _powers(text: str) -> set[str]:
    """The power of the last unit of area or volume in a text, if there is one."""
    return {one or "23"["²³".index(other)] for *_, one, other in MEASURE.findall(text)[-1:]}


def bare(text: str) -> str:
    """A text in lower case without markup. A label, which is words or a letter, without all punctuation around it; any
    other text without the punctuation at its end, quotes around it and white space beside symbols."""
    spaced = " ".join(_without_markup(text).split())
    if label := LABEL.fullmatch(spaced):
        return label[2].casefold()
    plain = SPACED.sub(r"\1", spaced).casefold()
    for _ in range(2):  # a full stop inside and outside of quotes
        plain = QUOTED.sub(r"\1", ENDING.sub("", plain))
    return plain or text.casefold().strip()


def length(completions: Sequence[str], words: int) -> list[float]:
    """1 at `words` words, falling linearly to 0 at 0 words and at twice as many."""
    if words < 1:
        raise ConfigError(f"reward.arguments.words: expected an integer >= 1, got {words}")
    return [max(0.0, 1 - abs(len(text.split()) - words) / words) for text in completions]


def matches(completions: Sequence[str], pattern: str) -> list[float]:
    """1 if the whole completion, without outer white space, matches a regular expression."""
    form = _compiled(pattern)
    return [float(form.fullmatch(text.strip()) is not None) for text in completions]


def finds(completions: Sequence[str], pattern: str) -> list[float]:
    """1 if a regular expression matches anywhere in the completion."""
    form = _compiled(pattern)
    return [float(form.search(text) is not None) for text in completions]


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"reward.arguments.pattern: {pattern!r} is not a regular expression ({error})") from None


def tagged(completions: Sequence[str], tags: Sequence[str], opened: bool = False) -> list[float]:
    """1 if the completion consists of these tags in this order, each once and non-empty, with nothing outside them.

    `opened`: the chat template already writes the first opening tag.
    """
    if isinstance(tags, str) or not tags:
        raise ConfigError(f"reward.arguments.tags: expected a list of names such as [think, answer], got {tags!r}")
    name = "|".join(re.escape(tag) for tag in tags)
    # No tag may contain another: `.*` would accept `<answer>1</answer><answer>2</answer>` as one.
    inside = rf"(?!</?(?:{name})>)"
    text = rf"\s*{inside}\S(?:{inside}.)*"
    form = re.compile(r"\s*".join(f"<{re.escape(tag)}>{text}</{re.escape(tag)}>" for tag in tags), re.DOTALL)
    start = f"<{tags[0]}>" if opened else ""
    return [float(form.fullmatch(start + text.strip()) is not None) for text in completions]


def non_repetition(completions: Sequence[str], n: int = 2) -> list[float]:
    """Share of word n-grams that do not repeat an earlier one: 1 without repetition."""
    return [distinct_ngram_share(text.split(), n) for text in completions]
