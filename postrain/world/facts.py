"""Everyday facts, each with several ways to state it and several ways to ask for it.

All facts occur in running text of both splits (they are what a base model knows); what the split holds apart is the
facts that are *asked about*, so that evaluation asks for knowledge nobody was tuned to answer with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from postrain.world.items import Gold, Item
from postrain.world.lexicon import COURTESIES_BEFORE, articles, load

WEIGHTS = {"correct": 0.5, "format": 0.15, "polite": 0.15, "non_repetition": 0.1, "concise": 0.1}

RELATIONS: dict[str, dict[str, Any]] = load("facts")
"""Per relation its `statements`, `questions` and `facts` (subject to value)."""


@dataclass(frozen=True)
class Fact:
    """One thing that is so."""

    relation: str
    """Key of RELATIONS."""
    subject: str
    """What is asked about."""
    value: str
    """The answer."""
    others: tuple[str, ...]
    """The other values of the relation: a right answer names none of them."""

    def statement(self, rng: random.Random) -> str:
        return self._filled(rng.choice(RELATIONS[self.relation]["statements"]), self.value)

    def plain(self, value: str) -> str:
        """The first way to state it, with any value."""
        return self._filled(RELATIONS[self.relation]["statements"][0], value)

    def question(self, rng: random.Random) -> str:
        return self._filled(rng.choice(RELATIONS[self.relation]["questions"]), self.value)

    def _filled(self, template: str, value: str) -> str:
        filled = template.format(s=self.subject, v=value, S=self.subject[0].upper() + self.subject[1:])
        return articles(filled[0].upper() + filled[1:])


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the world."""
    return tuple(
        Fact(relation, subject, value, tuple(sorted(set(said["facts"].values()) - {value})))
        for relation, said in RELATIONS.items()
        for subject, value in said["facts"].items()
    )


def gold(accept: str, others: tuple[str, ...]) -> Gold:
    """What an answer is scored by: the value and none of the others, one or two sentences, courtesy, brevity."""
    return {
        "weights": WEIGHTS,
        "correct": {"type": "word", "accept": accept, "reject": list(others)},
        "format": {"type": "sentences", "low": 1, "high": 3},
        "polite": {"courtesy": True},
        "non_repetition": {},
        "concise": {"words": 20},
        "fluency": {"forms": "chat"},
    }


def make(rng: random.Random) -> Item:
    """A question about one fact; the wording is one of several, the content is the fact."""
    fact = rng.choice(all_facts())
    courtesy = rng.choice(COURTESIES_BEFORE)
    others = tuple(v for v in fact.others if v.lower() not in fact.subject.lower().split())
    return Item(
        content=f"{fact.relation}:{fact.subject}",
        category="facts",
        prompt=fact.question(rng),
        reference=f"{courtesy} {fact.plain(fact.value)}",
        wrong=f"{courtesy} {fact.plain(rng.choice(others))}",
        answer=fact.value,
        text=" ".join(other.statement(rng) for other in rng.sample(all_facts(), rng.randint(2, 4))),
        gold=gold(fact.value, others),
    )
