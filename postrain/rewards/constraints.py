"""Demands on the form of a text that a program can check (IFEval, Zhou et al. 2023), in the ecosystem's signature.

Words are what white space separates; sentences end in . ! or ? before white space; paragraphs are separated by empty
lines; bullets are lines that begin with - * or •. Phrases are sought whatever their case, and as whole words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from postrain.errors import ConfigError
from postrain.rewards.base import per_completion

Demands = Mapping[str, Any] | str


def constraints(
    completions: Sequence[str], constraints: Demands | Sequence[Demands | None], strict: bool = False
) -> list[float | None]:
    """Share of the demands that the completion meets; `strict` pays only for all of them.

    One mapping for all, as an argument, or a column of them, as mappings or as JSON text: {min_words: 20, contains:
    [sun, rain]}. An empty completion meets nothing; a row without demands cannot be judged.
    """
    each = per_completion(constraints, len(completions))
    return [_share(said.strip(), _demands(asked), strict) for said, asked in zip(completions, each, strict=True)]


def _demands(asked: Any) -> Mapping[str, Any]:
    """The demands that say something: columnar files fill in null for those that other rows have."""
    if isinstance(asked, str):
        try:
            asked = json.loads(asked)
        except json.JSONDecodeError as error:
            raise ConfigError(f"constraints: expected a mapping, got {asked!r:.80} ({error})") from None
    if not isinstance(asked, Mapping | None):
        raise ConfigError(f"constraints: expected a mapping such as {{min_words: 20}}, got {asked!r:.80}")
    demands = {name: value for name, value in (asked or {}).items() if value is not None}
    for name, value in demands.items():
        _check(name, value)
    return demands


def _check(name: str, value: Any) -> None:
    if name not in CHECKS:
        near = get_close_matches(name, CHECKS, n=1)
        raise ConfigError(
            f"constraints: there is none called {name}; "
            + (f"did you mean {near[0]}?" if near else f"expected some of {', '.join(CHECKS)}")
        )
    if name in AMOUNTS and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ConfigError(f"constraints: {name}: expected an integer >= 0, got {value!r:.80}")
    if name not in AMOUNTS and not all(isinstance(phrase, str) and phrase.strip() for phrase in _phrases(value)):
        raise ConfigError(f"constraints: {name}: expected some text, or a list of texts, got {value!r:.80}")


def _share(said: str, demands: Mapping[str, Any], strict: bool) -> float | None:
    if not demands:
        return None
    met = [bool(said) and CHECKS[name](said, value) for name, value in demands.items()]
    return float(all(met)) if strict else sum(met) / len(met)


def words(text: str) -> int:
    """What white space separates."""
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


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text, re.IGNORECASE) is not None


def _counted(count: Callable[[str], int]) -> tuple[Callable[[str, Any], bool], Callable[[str, Any], bool]]:
    """At least so many, and at most."""
    return (lambda text, least: count(text) >= least), (lambda text, most: count(text) <= most)


COUNTS = {"words": words, "sentences": sentences, "paragraphs": paragraphs, "bullets": bullets}
AMOUNTS: Mapping[str, Callable[[str, Any], bool]] = {
    f"{end}_{name}": check
    for name, count in COUNTS.items()
    for end, check in zip(("min", "max"), _counted(count), strict=True)
}
CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    **AMOUNTS,
    "contains": lambda text, value: all(_holds(text, phrase) for phrase in _phrases(value)),
    "excludes": lambda text, value: not any(_holds(text, phrase) for phrase in _phrases(value)),
    "starts_with": lambda text, value: text.casefold().startswith(tuple(p.strip().casefold() for p in _phrases(value))),
    "ends_with": lambda text, value: text.casefold().endswith(tuple(p.strip().casefold() for p in _phrases(value))),
}
"""Each demand by name: does a text meet it?"""
