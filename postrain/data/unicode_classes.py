"""Letters, numbers and spaces of Unicode as ranges for Python's `re`, which has no `\\p{L}`.

Regular expressions of other libraries may know another version of Unicode. The ranges hold characters whose class has
been the same since Unicode 3.2; texts with other characters are not for these ranges (`KNOWN`).
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import groupby
from typing import Any

WHITE_SPACE = frozenset("\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000").union(
    map(chr, range(0x2000, 0x200B))
)
END = 0x20000
"""The first code point that is not classified."""
CLASS = re.compile(r"\[[^\]]*\]|\\p\{[LN]\}|\\[sS]")
FOLDED = "\u017f\u212a"
"""Characters that are equal to s and k where case is ignored."""


def in_ascii(regex: str) -> re.Pattern[str]:
    """A regular expression with `\\p{L}`, `\\p{N}`, `\\s` and `\\S`, for ASCII texts."""
    return re.compile(_with_ranges(regex, {"L": "a-zA-Z", "N": "0-9", "s": "\\t-\\r "}))


def in_unicode(regex: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """The same for all texts that the second regular expression matches as a whole."""
    ranges = _ranges()
    return re.compile(_with_ranges(regex, ranges)), re.compile(f"[{''.join(ranges.values())}]*")


def _with_ranges(regex: str, ranges: Mapping[str, str]) -> str:
    def replaced(found: re.Match[str]) -> str:
        text = found.group()
        if text == r"\S":
            return f"[^{ranges['s']}]"
        for name, written in (("L", r"\p{L}"), ("N", r"\p{N}"), ("s", r"\s")):
            text = text.replace(written, ranges[name] if text[0] == "[" else f"[{ranges[name]}]")
        return text

    return CLASS.sub(replaced, regex)


@cache
def _ranges() -> Mapping[str, str]:
    """The ranges of each class."""
    members: dict[str, list[int]] = defaultdict(list)
    for code in range(END):
        character = chr(code)
        found = _class(character, unicodedata)
        unsure = unicodedata.category(character) in ("Cn", "Cs") or character in FOLDED
        if not unsure and found == _class(character, unicodedata.ucd_3_2_0):
            members[found].append(code)
    return {name: "".join(_joined(codes)) for name, codes in members.items()}


def _class(character: str, database: Any) -> str:
    if character in WHITE_SPACE:
        return "s"
    category = database.category(character)[0]
    return category if category in "LN" else "other"


def _joined(codes: Iterable[int]) -> Iterable[str]:
    """Sorted code points as ranges."""
    for _, run in groupby(enumerate(codes), lambda place_code: place_code[1] - place_code[0]):
        numbers = [code for _, code in run]
        yield f"\\U{numbers[0]:08x}-\\U{numbers[-1]:08x}"
