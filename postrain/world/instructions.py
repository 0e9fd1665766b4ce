"""Instructions in six categories, each verifiable without a model.

facts, paraphrases (a question about a fact, rephrased), reasoning (a sum or word problem), following (a list, an order,
a single word), creative (a story of a given mood about a named character), code (the output of a line of Python). In
chat style: prompts are user messages, references are answers of a polite assistant.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from postrain.world import facts, stories, sums
from postrain.world.items import GoldSpec, Item
from postrain.world.lexicon import CATEGORIES, COURTESIES_AFTER, COURTESIES_BEFORE, CREATURES, NAMES, NUMBERS

WORDS = sorted({word for members in CATEGORIES.values() for word in members if word.islower()})
WEIGHTS = facts.WEIGHTS
PARAPHRASES = ("I would like to know this: {q}", "Please help me. {q}", "Here is a question. {q}", "{q} Please answer.")


def _gold_spec(correct: GoldSpec, form: GoldSpec, *, courtesy: bool, limit: int) -> GoldSpec:
    parts = {"correct": correct, "format": form, "polite": {"courtesy": courtesy}, "non_repetition": {}}
    return {"weights": WEIGHTS, **parts, "concise": {"words": limit}, "fluency": {"forms": "chat"}}


def make(rng: random.Random) -> Item:
    """An instruction of a uniformly drawn category."""
    return CATEGORY[rng.choice(tuple(CATEGORY))](rng)


def paraphrase(rng: random.Random) -> Item:
    """A paraphrased question about a fact; its content is that of the plain question."""
    item = facts.make(rng)
    return replace(item, category="paraphrases", prompt=rng.choice(PARAPHRASES).format(q=item.prompt))


def reasoning(rng: random.Random) -> Item:
    """A sum or a word problem; the answer contains the steps."""
    terms = sums.draw(rng)
    steps, bad = sums.chain(terms), sums.chain_with_slip(rng, terms)
    courtesy = rng.choice(COURTESIES_BEFORE)
    question = rng.choice(("What is {e}?", "Please work out {e}.", "How much is {e}?")).format(e=sums.expression(terms))
    weights = {"correct": 0.4, "steps": 0.2, "format": 0.15, "polite": 0.15, "non_repetition": 0.1}
    answer = sums.total(terms)
    return Item(
        content=sums.expression(terms),
        category="reasoning",
        prompt=question if rng.random() < 0.6 else sums.word_problem(rng, terms),
        reference=" ".join((courtesy, *steps)),
        wrong=" ".join((courtesy, *bad)),
        answer=str(answer),
        gold={
            **sums.gold_spec(answer, len(terms) - 1),
            "weights": weights,
            "polite": {"courtesy": True},
            "fluency": {"forms": "chat"},
        },
    )


def following(rng: random.Random) -> Item:
    """A constraint on the form: a number of members of a set, a reversed list, or a single word."""
    return rng.choice((_listing, _reversing, _one_word))(rng)


def _listing(rng: random.Random) -> Item:
    kind, count = rng.choice(tuple(CATEGORIES)), rng.randint(2, 4)
    members = CATEGORIES[kind]
    instruction = rng.choice(("List {n} {k}.", "Name {n} {k}.", "Write a list of {n} {k}.")).format(
        n=NUMBERS[count], k=kind
    )
    others = [word for other, words in CATEGORIES.items() if other != kind for word in words]
    return Item(
        content=instruction,
        category="following",
        prompt=instruction,
        reference=", ".join(rng.sample(members, count)) + ".",
        wrong=", ".join(rng.sample(others, count)) + ".",
        gold=_gold_spec(
            {"type": "items", "accept": members, "count": count}, {"type": "list"}, courtesy=False, limit=count
        ),
    )


def _reversing(rng: random.Random) -> Item:
    chosen = rng.sample(WORDS, rng.randint(2, 3))
    template = rng.choice(("Write these words in reverse order: {w}.", "Turn this list round: {w}."))
    return Item(
        content="reverse:" + ",".join(chosen),
        category="following",
        prompt=template.format(w=", ".join(chosen)),
        reference=", ".join(reversed(chosen)) + ".",
        wrong=", ".join(chosen) + ".",
        answer=", ".join(reversed(chosen)) + ".",
        gold=_gold_spec(
            {"type": "sequence", "accept": [word.lower() for word in reversed(chosen)]},
            {"type": "list"},
            courtesy=False,
            limit=len(chosen),
        ),
    )


def _one_word(rng: random.Random) -> Item:
    item = facts.make(rng)
    correct = item.gold["correct"]
    return replace(
        item,
        category="following",
        prompt=rng.choice(("Answer with one word. {q}", "{q} Use one word only.")).format(q=item.prompt),
        reference=item.answer or "",
        wrong=rng.choice(correct["reject"]),
        gold=_gold_spec(correct, {"type": "bare"}, courtesy=False, limit=1),
    )


def creative(rng: random.Random) -> Item:
    """A short story of a given mood about a named character."""
    mood, name, creature = rng.choice(("good", "bad")), rng.choice(NAMES), rng.choice(CREATURES)
    template = rng.choice(("Write a {m} story about {n} the {c}.", "Tell me a {m} story with {n} the {c}."))
    friend = rng.choice([other for other in NAMES if other != name])
    about = {**stories.opening(rng)[1], "n": name, "f": friend}
    start = f"{name} the {creature} was at the {about['p']}."
    weights = {"mood": 0.4, "correct": 0.2, "non_repetition": 0.2, "format": 0.2}
    story = {mood: start + stories.full_mood(rng, about, mood) for mood in ("good", "bad")}
    return Item(
        content=f"{mood}:{name}:{creature}",
        category="creative",
        prompt=template.format(m={"good": "happy", "bad": "sad"}[mood], n=name, c=creature),
        reference=story[mood],
        wrong=story["bad" if mood == "good" else "good"],
        gold={
            **stories.gold_spec(mood),
            "weights": weights,
            "correct": {"type": "word", "accept": name, "reject": []},
        },
    )


def code(rng: random.Random) -> Item:
    """The output of a line of Python."""
    line, result = rng.choice((_print_sum, _maximum, _length, _variable))(rng)
    courtesy = rng.choice(COURTESIES_AFTER)
    slip = result + rng.choice((-1, 1, 2)) if result else 1
    question = rng.choice(("What does {c} show?", "Run this code: {c}", "Tell me the result of {c}")).format(c=line)
    return Item(
        content=line,
        category="code",
        prompt=question,
        reference=f"The result is {result}. {courtesy}",
        wrong=f"The result is {slip}. {courtesy}",
        answer=str(result),
        text=f"{line} shows {result}.",
        gold=_gold_spec(
            {"type": "number", "accept": str(result)},
            {"type": "sentences", "low": 1, "high": 3},
            courtesy=True,
            limit=20,
        ),
    )


def _print_sum(rng: random.Random) -> tuple[str, int]:
    left, right = rng.randint(1, 20), rng.randint(1, 9)
    return f"print({left} + {right})", left + right


def _maximum(rng: random.Random) -> tuple[str, int]:
    name = rng.choice(("max", "min"))
    values = [rng.randint(1, 20) for _ in range(rng.randint(2, 3))]
    return f"print({name}({', '.join(map(str, values))}))", max(values) if name == "max" else min(values)


def _length(rng: random.Random) -> tuple[str, int]:
    values = [rng.randint(1, 9) for _ in range(rng.randint(1, 5))]
    return f"print(len([{', '.join(map(str, values))}]))", len(values)


def _variable(rng: random.Random) -> tuple[str, int]:
    start, more = rng.randint(1, 20), rng.randint(1, 9)
    return f"x = {start}; print(x + {more})", start + more


CATEGORY: dict[str, Callable[[random.Random], Item]] = {
    "facts": facts.make,
    "reasoning": reasoning,
    "following": following,
    "creative": creative,
    "code": code,
    "paraphrases": paraphrase,
}
