"""Sums of a few numbers, with the steps written out: 3 + 4 + 2 = ? 3 + 4 = 7. 7 + 2 = 9. The answer is 9.

Results are from 0 to 20, so that a model of a million parameters can learn them. In running text, two in five sums give
the answer without steps: the base model writes both forms, and a verifiable reward can teach a policy to write steps.
Prompts are longer on average, up to one number more than any sum in the running text.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import accumulate
from operator import and_

from postrain.world.items import GoldSpec, Item
from postrain.world.lexicon import NAMES

LIMIT = 20
TEXT_TERM_COUNTS = (2, 3, 3, 4)
"""Numbers in a sum of running text, drawn uniformly."""
PROMPT_TERM_COUNTS = (3, 4, 4, 5, 5)
"""The same for prompts; sampled accuracy of the bundled base model is between a third and two thirds."""
LONG_TERM_COUNTS = (6, 7)
"""The same for sums that are longer than all prompts, to see how far a skill carries over."""
ANSWER_ONLY_SHARE = 0.4
"""Share of running text with the answer only, without steps."""
WORD_PROBLEM_SHARE = 0.15
"""Share of running text in the form of a word problem."""
WEIGHTS = {"correct": 0.6, "steps": 0.2, "format": 0.1, "non_repetition": 0.1}
FLAWS = {"early": 14, "guess": 6, "skip": 2, "slip": 1}
"""Errors of chains with step labels, and their frequencies, similar to those of the bundled base model: of 174 flawed
samples, 134 gave only an answer (38 right), 19 answered too early, 16 left out a number, 5 had wrong arithmetic."""
OBJECTS = ("apples", "pears", "plums", "books", "coins", "balls")


def gold_spec(answer: int, steps: int) -> GoldSpec:
    """The gold specification: final number, true equations, closing sentence."""
    return {
        "weights": WEIGHTS,
        "correct": {"type": "number", "accept": str(answer)},
        "steps": {"count": steps},
        "format": {"type": "final"},
        "fluency": {"forms": "calculation"},
        "non_repetition": {},
    }


def make_prompt(rng: random.Random) -> Item:
    """A sum as in prompts."""
    return make(rng, PROMPT_TERM_COUNTS)


def make_long_prompt(rng: random.Random) -> Item:
    """A sum of six or seven numbers, more than those of prompts."""
    return make(rng, LONG_TERM_COUNTS)


def make_word_problem(rng: random.Random) -> Item:
    """A sum as in prompts, asked for in words."""
    item = make_prompt(rng)
    return replace(item, prompt=word_problem(rng, terms_of(item.content)))


def make(rng: random.Random, counts: tuple[int, ...] = TEXT_TERM_COUNTS) -> Item:
    """A sum as in running text: `3 + 4 + 2 = ?`, continued after a space."""
    terms = draw(rng, counts)
    steps, bad = chain(terms), chain_with_slip(rng, terms)
    prompt = f"{expression(terms)} = ?"
    as_story = rng.random() < WORD_PROBLEM_SHARE
    direct = rng.random() < ANSWER_ONLY_SHARE
    written = steps[-1:] if direct else steps
    return Item(
        content=expression(terms),
        category="sums",
        prompt=prompt,
        reference=" " + " ".join(steps),
        wrong=" " + " ".join(bad),
        answer=str(total(terms)),
        steps=steps,
        text=" ".join((word_problem(rng, terms) if as_story else prompt, *written)),
        gold=gold_spec(total(terms), len(terms) - 1),
    )


def draw(rng: random.Random, counts: tuple[int, ...] = TEXT_TERM_COUNTS) -> tuple[int, ...]:
    """Signed terms with partial results from 0 to LIMIT and no repeated equation."""
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
    """One equation per step and the closing sentence; a slip is added to the result of its step and carried on."""
    steps, result = [], terms[0]
    for i, term in enumerate(terms[1:]):
        before, result = result, result + term + (slips[i] if slips else 0)
        steps.append(f"{expression((before, term))} = {result}.")
    return (*steps, f"The answer is {result}.")


def chain_with_slip(rng: random.Random, terms: tuple[int, ...]) -> tuple[str, ...]:
    """A chain with one arithmetic error, so that the answer is wrong too."""
    while True:
        at, slip = rng.randrange(len(terms) - 1), rng.choice((-10, -2, -1, 1, 2, 10))
        slips = tuple(slip if i == at else 0 for i in range(len(terms) - 1))
        partial = [sum(terms[: i + 2]) + (slip if i >= at else 0) for i in range(len(terms) - 1)]
        if min(partial) >= 0:
            return chain(terms, slips)


def flawed_chain(rng: random.Random, terms: tuple[int, ...]) -> tuple[str, ...]:
    """A chain with one error of FLAWS; a guess may be right."""
    flaw = rng.choices(tuple(FLAWS), tuple(FLAWS.values()))[0]
    if flaw == "slip":
        return chain_with_slip(rng, terms)
    if flaw == "guess":
        return chain((max(0, total(terms) + rng.choice((-2, -1, 0, 0, 1, 2))),))
    while True:
        at = rng.randrange(1, len(terms))
        kept = terms[:at] + (terms[at + 1 :] if flaw == "skip" else ())
        if min(accumulate(kept)) >= 0:
            return chain(kept)


def labels(right: tuple[str, ...], written: tuple[str, ...]) -> list[bool]:
    """Step labels: True up to the first mistake. A step is right if it is the next one of the right chain, or the right
    answer given early."""
    good = [step in (*right[at : at + 1], right[-1]) for at, step in enumerate(written)]
    return list(accumulate(good, and_))


def word_problem(rng: random.Random, terms: tuple[int, ...]) -> str:
    """The sum as a word problem."""
    name, what = rng.choice(NAMES), rng.choice(OBJECTS)
    middle = "".join(f" {name} {'loses' if term < 0 else 'finds'} {abs(term)}." for term in terms[1:])
    return f"{name} has {terms[0]} {what}.{middle} How many {what}?"
