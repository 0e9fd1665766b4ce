"""Everyday facts, each with several statements and several questions.

All facts occur in the running text of both splits, so that the base model learns them. The split separates the facts
of *questions*: no post-training row answers a question of the eval split.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

from postrain.world.items import GoldSpec, Item
from postrain.world.lexicon import COURTESIES_BEFORE, articles, load

WEIGHTS = {"correct": 0.5, "format": 0.15, "polite": 0.15, "non_repetition": 0.1, "concise": 0.1}

RELATIONS: dict[str, dict[str, Any]] = load("facts")
"""Per relation its `statements`, `questions` and `facts` (subject to value)."""


@dataclass(frozen=True)
class Fact:
    """One fact."""

    relation: str
    """Key of RELATIONS."""
    subject: str
    """The subject of the question."""
    value: str
    """The answer."""
    others: tuple[str, ...]
    """The other values of the relation. A right answer does not contain them."""

    def statement(self, rng: random.Random) -> str:
        return self._filled(rng.choice(RELATIONS[self.relation]["statements"]), self.value)

    def plain(self, value: str) -> str:
        """The first statement template, with any value."""
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
        Fact(relation, subject, value, tuple(sorted(set(entry["facts"].values()) - {value})))
        for relation, entry in RELATIONS.items()
        for subject, value in entry["facts"].items()
    )


def gold_spec(accept: str, others: tuple[str, ...]) -> GoldSpec:
    """The gold specification: the value and none of the others, one or two sentences, courtesy, brevity."""
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
    """A question about one fact, from one of several templates; its content is the fact."""
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
        gold=gold_spec(fact.value, others),
    )
