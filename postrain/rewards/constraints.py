"""Verifiable constraints on the form of a text (IFEval, Zhou et al. 2023), in TRL's signature of reward functions.

Words are separated by white space; sentences end in . ! or ? before white space; paragraphs are separated by empty
lines; bullets are lines that begin with - * or •. Phrases match whole words, in any case.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from postrain.errors import ConfigError
from postrain.rewards.base import per_completion
from postrain.suggestions import suggestion

Constraints = Mapping[str, Any] | str


def constraints(
    completions: Sequence[str], constraints: Constraints | Sequence[Constraints | None], strict: bool = False
) -> list[float | None]:
    """Share of the constraints that the completion meets; with `strict`, 1 if it meets all, else 0.

    One mapping as an argument, or a column of mappings or their JSON text: {min_words: 20, contains: [sun, rain]}. An
    empty completion meets no constraint; a row without constraints is unscorable.
    """
    each = per_completion(constraints, len(completions))
    return [_share(text.strip(), _parse(given), strict) for text, given in zip(completions, each, strict=True)]


def _parse(given: Any) -> Mapping[str, Any]:
    """The constraints that are not null: columnar files fill missing keys with null."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except json.JSONDecodeError as error:
            raise ConfigError(f"constraints: expected a mapping, got {given!r:.80} ({error})") from None
    if not isinstance(given, Mapping | None):
        raise ConfigError(f"constraints: expected a mapping such as {{min_words: 20}}, got {given!r:.80}")
    wanted = {name: value for name, value in (given or {}).items() if value is not None}
    for name, value in wanted.items():
        _check(name, value)
    return wanted


def _check(name: str, value: Any) -> None:
    if name not in CHECKS:
        hint = suggestion(name, CHECKS, f"expected one of {', '.join(CHECKS)}")
        raise ConfigError(f"constraints: unknown constraint {name}{hint}")
    # Columns of numbers with nulls are floats in pandas.
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value == value // 1
    if name in COUNT_CHECKS and not whole:
        raise ConfigError(f"constraints: {name}: expected an integer >= 0, got {value!r:.80}")
    if name not in COUNT_CHECKS and not all(isinstance(phrase, str) and phrase.strip() for phrase in _phrases(value)):
        raise ConfigError(f"constraints: {name}: expected some text, or a list of texts, got {value!r:.80}")


def _share(text: str, wanted: Mapping[str, Any], strict: bool) -> float | None:
    if not wanted:
        return None
    met = [bool(text) and CHECKS[name](text, value) for name, value in wanted.items()]
    return float(all(met)) if strict else sum(met) / len(met)


def words(text: str) -> int:
    """Words, separated by white space."""
    return len(text.split())


def sentences(text: str) -> int:
    """Pieces that end in . ! or ? before white space; a piece without an end counts as one."""
    return len([piece for piece in re.split(r"(?<=[.!?])[\"'”’)\]]*\s+", text.strip()) if piece])


def paragraphs(text: str) -> int:
    """Pieces that empty lines separate."""
    return len([piece for piece in re.split(r"\n\s*\n", text) if piece.strip()])


def bullets(text: str) -> int:
    """Lines of a list."""
    return len(re.findall(r"^[ \t]*[-*•][ \t]+\S", text, re.MULTILINE))


def _phrases(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) and not isinstance(value, str) else [value]


def _contains_phrase(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text, re.IGNORECASE) is not None


def _counted(count: Callable[[str], int]) -> tuple[Callable[[str, Any], bool], Callable[[str, Any], bool]]:
    """The checks for a minimum and a maximum."""
    return (lambda text, least: count(text) >= least), (lambda text, most: count(text) <= most)


COUNTS = {"words": words, "sentences": sentences, "paragraphs": paragraphs, "bullets": bullets}
COUNT_CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    f"{end}_{name}": check
    for name, count in COUNTS.items()
    for end, check in zip(("min", "max"), _counted(count), strict=True)
}
CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    **COUNT_CHECKS,
    "contains": lambda text, value: all(_contains_phrase(text, phrase) for phrase in _phrases(value)),
    "excludes": lambda text, value: not any(_contains_phrase(text, phrase) for phrase in _phrases(value)),
    "starts_with": lambda text, value: text.casefold().startswith(tuple(p.strip().casefold() for p in _phrases(value))),
    "ends_with": lambda text, value: text.casefold().endswith(tuple(p.strip().casefold() for p in _phrases(value))),
}
"""For each constraint, a function that checks whether a text meets it."""
