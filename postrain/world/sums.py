"""Sums of a few numbers, with the steps written out: 3 + 4 + 2 = ? 3 + 4 = 7. 7 + 2 = 9. The answer is 9.

Kept small (results from 0 to 20) so that a model of a million parameters learns them. In running text two in five go
straight to the answer: a base model then knows both ways, and a policy paid for right answers can find out that writing
the steps is the better one. What is asked outside running text is longer on average, up to one number more than any sum
the base model has read.
"""

from __future__ import annotations

import random
import re
from itertools import accumulate
from operator import and_

from postrain.world.items import Gold, Item
from postrain.world.lexicon import NAMES

LIMIT = 20
TOLD_TERMS = (2, 3, 3, 4)
"""How many numbers a sum of running text has, each as likely."""
ASKED_TERMS = (3, 4, 4, 5, 5)
"""The same for prompts: the bundled base model, sampled, finds between a third and two thirds of these."""
DIRECT = 0.4
"""Share of running text that gives the answer without the steps."""
TOLD = 0.15
"""Share of running text that tells the sum as a tiny story."""
WEIGHTS = {"correct": 0.6, "steps": 0.2, "format": 0.1, "non_repetition": 0.1}
FLAWS = {"early": 14, "guess": 6, "skip": 2, "slip": 1}
"""How chains with step labels go wrong, and how often. Much as the bundled base model does: of 174 flawed samples 134
went straight to an answer (38 of them rightly), 19 answered too soon, 16 left a number out, 5 slipped in arithmetic."""
FRUITS = ("apples", "pears", "plums", "books", "coins", "balls")


def gold(answer: int, steps: int) -> Gold:
    """What a chain is scored by: the final number, true equations, the closing sentence."""
    return {
        "weights": WEIGHTS,
        "correct": {"type": "number", "accept": str(answer)},
        "steps": {"count": steps},
        "format": {"type": "final"},
        "fluency": {"forms": "calculation"},
        "non_repetition": {},
    }


def asked(rng: random.Random) -> Item:
    """A sum as it stands in prompts."""
    return make(rng, ASKED_TERMS)


def make(rng: random.Random, counts: tuple[int, ...] = TOLD_TERMS) -> Item:
    """A sum as it stands in running text: `3 + 4 + 2 = ?`, continued after a space."""
    terms = draw(rng, counts)
    steps, bad = chain(terms), spoiled(rng, terms)
    prompt = f"{expression(terms)} = ?"
    told = rng.random() < TOLD
    direct = rng.random() < DIRECT
    shown = steps[-1:] if direct else steps
    return Item(
        content=expression(terms),
        category="sums",
        prompt=prompt,
        reference=" " + " ".join(steps),
        wrong=" " + " ".join(bad),
        answer=str(total(terms)),
        steps=steps,
        text=" ".join((tale(rng, terms) if told else prompt, *shown)),
        gold=gold(total(terms), len(terms) - 1),
    )


def draw(rng: random.Random, counts: tuple[int, ...] = TOLD_TERMS) -> tuple[int, ...]:
    """Signed terms whose partial results stay within 0 and LIMIT, no equation standing twice."""
    while True:
        count = rng.choice(counts)
        terms = [_number(rng)] + [_number(rng) * rng.choice((1, 1, -1)) for _ in range(count - 1)]
        partial = [sum(terms[: i + 1]) for i in range(count)]
        if min(partial) >= 0 and max(partial) <= LIMIT and len(set(chain(tuple(terms)))) == count:
            return tuple(terms)


def _number(rng: random.Random) -> int:
    return rng.randint(1, 9) if rng.random() < 0.85 else rng.randint(10, 15)


def total(terms: tuple[int, ...]) -> int:
    """The right answer."""
    return sum(terms)


def expression(terms: tuple[int, ...]) -> str:
    """The terms as they are written: 3 + 4 - 2."""
    return str(terms[0]) + "".join(f" {'-' if term < 0 else '+'} {abs(term)}" for term in terms[1:])


def terms_of(written: str) -> tuple[int, ...]:
    """The reverse of `expression`."""
    return tuple(int(number) for number in re.findall(r"-?\d+", written.replace("- ", "-")))


def chain(terms: tuple[int, ...], slips: tuple[int, ...] = ()) -> tuple[str, ...]:
    """One equation a step and the closing sentence; a slip is added to the result of its step and carried on."""
    steps, result = [], terms[0]
    for i, term in enumerate(terms[1:]):
        before, result = result, result + term + (slips[i] if slips else 0)
        steps.append(f"{expression((before, term))} = {result}.")
    return (*steps, f"The answer is {result}.")


def spoiled(rng: random.Random, terms: tuple[int, ...]) -> tuple[str, ...]:
    """The same chain with one step gone wrong, so that the answer is wrong too."""
    while True:
        at, slip = rng.randrange(len(terms) - 1), rng.choice((-10, -2, -1, 1, 2, 10))
        slips = tuple(slip if i == at else 0 for i in range(len(terms) - 1))
        partial = [sum(terms[: i + 2]) + (slip if i >= at else 0) for i in range(len(terms) - 1)]
        if min(partial) >= 0:
            return chain(terms, slips)


def flawed(rng: random.Random, terms: tuple[int, ...]) -> tuple[str, ...]:
    """A chain with one thing gone wrong; a guess may be right."""
    flaw = rng.choices(tuple(FLAWS), tuple(FLAWS.values()))[0]
    if flaw == "slip":
        return spoiled(rng, terms)
    if flaw == "guess":
        return chain((max(0, total(terms) + rng.choice((-2, -1, 0, 0, 1, 2))),))
    while True:
        at = rng.randrange(1, len(terms))
        kept = terms[:at] + (terms[at + 1 :] if flaw == "skip" else ())
        if min(accumulate(kept)) >= 0:
            return chain(kept)


def labels(right: tuple[str, ...], shown: tuple[str, ...]) -> list[bool]:
    """True while every step so far is the next of the right chain, or the right answer come early: after the first
    mistake nothing can be right any more."""
    good = [step in (*right[at : at + 1], right[-1]) for at, step in enumerate(shown)]
    return list(accumulate(good, and_))


def tale(rng: random.Random, terms: tuple[int, ...]) -> str:
    """The sum as a tiny story that ends in a question."""
    name, what = rng.choice(NAMES), rng.choice(FRUITS)
    middle = "".join(f" {name} {'loses' if term < 0 else 'finds'} {abs(term)}." for term in terms[1:])
    return f"{name} has {terms[0]} {what}.{middle} How many {what}?"
