"""The words of the world, read once from assets/world/words.toml.

Lists only: stories.py, facts.py and instructions.py combine them. A test checks that neutral lists and mood lists share
no word, so that opening sentences have no mood.
"""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files
from typing import Any


def load(name: str) -> dict[str, Any]:
    """A word file of the world."""
    return tomllib.loads(files("postrain").joinpath("assets", "world", f"{name}.toml").read_text("utf-8"))


_WORDS = load("words")

NAMES: list[str] = _WORDS["names"].split()
CREATURES: list[str] = _WORDS["creatures"].split()
PLACES: list[str] = _WORDS["places"].split()
THINGS: list[str] = _WORDS["things"].split()
TIMES: list[str] = _WORDS["times"]
MOVES: list[str] = _WORDS["moves"]
ADJECTIVES: list[str] = _WORDS["adjectives"].split()
NUMBERS: list[str] = _WORDS["numbers"].split()
CATEGORIES: dict[str, list[str]] = {name: members.split() for name, members in _WORDS["categories"].items()}

GOOD_WORDS = frozenset(_WORDS["good"].split())
BAD_WORDS = frozenset(_WORDS["bad"].split())
RUDE_WORDS = frozenset(_WORDS["rude"].split())

COURTESIES_BEFORE: list[str] = _WORDS["courtesies_before"]
COURTESIES_AFTER: list[str] = _WORDS["courtesies_after"]
COURTESIES = (*COURTESIES_BEFORE, *COURTESIES_AFTER)
INSULTS: list[str] = _WORDS["insults"]


def articles(text: str) -> str:
    """The same text with `an` before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)
