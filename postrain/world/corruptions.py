"""Completions of graded quality: wrong, rude, repetitive, malformed, or several of these."""

from __future__ import annotations

import random

from postrain.world.gold import sentences
from postrain.world.items import Item
from postrain.world.lexicon import COURTESIES, INSULTS

WRONG_SHARE = 0.5
FAULT_SHARE = 0.2
"""Probability of each further fault."""


def draw_completion(item: Item, rng: random.Random) -> str:
    """Draws a completion between the reference and a bad one; keeps the leading space of a continuation."""
    source = item.wrong if rng.random() < WRONG_SHARE else item.reference
    lead, body = source[: len(source) - len(source.lstrip())], source.strip()
    chat = "polite" in item.gold["weights"]
    if chat and rng.random() < FAULT_SHARE:
        body = _without_courtesy(body)
    if rng.random() < FAULT_SHARE:
        body = " ".join([body, *[sentences(body)[-1]] * rng.randint(1, 3)])
    if rng.random() < FAULT_SHARE:
        body = body.rstrip(".!").lower()
    if chat and rng.random() < FAULT_SHARE:
        body = f"{rng.choice(INSULTS)} {body}"
    return lead + body


def _without_courtesy(body: str) -> str:
    for phrase in COURTESIES:
        body = body.replace(phrase, "")
    return body.strip()
