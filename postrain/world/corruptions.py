"""Answers that are bad in graded ways: wrong, rude, repetitive, out of form, or several at once."""

from __future__ import annotations

import random

from postrain.world.gold import sentences
from postrain.world.items import Item
from postrain.world.lexicon import COURTESIES, INSULTS

WRONG = 0.5
FAULT = 0.2
"""Chance of each further fault."""


def draft(item: Item, rng: random.Random) -> str:
    """A completion somewhere between the reference and hopeless; keeps the space a continuation begins with."""
    source = item.wrong if rng.random() < WRONG else item.reference
    lead, body = source[: len(source) - len(source.lstrip())], source.strip()
    chat = "polite" in item.gold["weights"]
    if chat and rng.random() < FAULT:
        body = _without_courtesy(body)
    if rng.random() < FAULT:
        body = " ".join([body, *[sentences(body)[-1]] * rng.randint(1, 3)])
    if rng.random() < FAULT:
        body = body.rstrip(".!").lower()
    if chat and rng.random() < FAULT:
        body = f"{rng.choice(INSULTS)} {body}"
    return lead + body


def _without_courtesy(body: str) -> str:
    for phrase in COURTESIES:
        body = body.replace(phrase, "")
    return body.strip()
