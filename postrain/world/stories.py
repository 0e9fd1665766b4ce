"""Micro-stories: a neutral opening sentence, a few events of one mood, an ending.

The mood depends on the vocabulary alone (lexicon.GOOD_WORDS and BAD_WORDS), so that it can be scored without a model.
Openings have no mood: they are the prompts.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from postrain.world.items import GoldSpec, Item
from postrain.world.lexicon import BAD_WORDS, CREATURES, GOOD_WORDS, MOVES, NAMES, PLACES, THINGS, TIMES, articles

MOODS = ("good", "bad", "neutral")
MOOD_SHARES = (0.45, 0.45, 0.10)
"""Share of each mood in running text. Balanced, so that a mood reward can change it in both directions."""

EVENTS = {
    "good": (
        "{n} found a shiny {o}.",
        "A kind {a} gave {n} a gift.",
        "{n} laughed and danced with {f}.",
        "The sun was bright and the air was warm.",
        "{n} won the game with {f}.",
        "{f} hugged {n} and smiled.",
        "They shared a sweet and tasty cake.",
        '"Thank you, dear friend," said {n}.',
        "{n} and {f} played a funny game.",
        "It was a lovely and sunny day.",
        "A friendly {a} sang a cheerful song.",
        "{f} had a beautiful golden {o} for {n}.",
        '"Please sit with us," said the nice {a}.',
        "{n} loved the pretty {o} very much.",
        "The brave {a} kept {n} safe.",
        "{n} enjoyed a delicious warm soup.",
    ),
    "bad": (
        "{n} lost the {o}.",
        "A mean {a} shouted at {n}.",
        "{n} fell and hurt a leg.",
        "It was dark and cold.",
        "{n} cried for a long time.",
        '"Go away, you fool," said {f}.',
        "The {o} was broken and dirty.",
        "An angry {a} stole the {o}.",
        "{n} was hungry and tired.",
        "The rain was cold and {n} was wet.",
        "{f} was rude and cruel to {n}.",
        "{n} was scared of the ugly {a}.",
        '"What a stupid {o}," said the grumpy {a}.',
        "{n} sat alone in the muddy {p}.",
        "A nasty {a} broke the {o}.",
        "{n} felt sick and full of pain.",
    ),
    "neutral": (
        "{n} saw a {a} near the {p}.",
        "There was a {o} on the ground.",
        "{n} looked at the {o}.",
        "{f} was there too.",
        "A {a} walked by.",
        "{n} put the {o} in a box.",
        "{f} had a {o} as well.",
        "They talked about the {p}.",
    ),
}
ENDINGS = {
    "good": (
        "{n} was happy and proud.",
        "What a wonderful day it was!",
        "{n} went home with a big smile.",
        "In the end, all of them were glad.",
        "That night, {n} felt calm and lucky.",
        "{n} and {f} were best friends.",
        "It was so much fun and joy!",
    ),
    "bad": (
        "{n} was sad and lonely.",
        "What a terrible day it was!",
        "{n} went home in tears.",
        "In the end, all of them were unhappy.",
        "That night, {n} felt afraid and bitter.",
        "{n} hated the awful {p}.",
        "It was the worst day of all.",
    ),
    "neutral": (
        "Then {n} went home.",
        "After that, {n} went to sleep.",
        "In the end, they all went home.",
        "That was the end of the day.",
        "{n} came back the next day.",
    ),
}
WEIGHTS = {"mood": 0.6, "non_repetition": 0.2, "format": 0.2}
NEUTRAL_SHARE = 0.15
"""Share of neutral events in stories with a mood."""


def gold_spec(mood: str) -> GoldSpec:
    """The gold specification: full mood, no repetition, well-formed sentences."""
    return {
        "weights": WEIGHTS,
        "mood": {"target": mood},
        "non_repetition": {},
        "format": {"type": "story", "low": 2, "high": 5},
        "fluency": {"forms": "story"},
    }


def opening(rng: random.Random) -> tuple[str, dict[str, str]]:
    """A first sentence without mood, and the names and things of the story."""
    name, friend = rng.sample(NAMES, 2)
    creature, other = rng.sample(CREATURES, 2)
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    sentence = f"{rng.choice(TIMES)}, {name} the {creature} {rng.choice(MOVES)} the {place}."
    return sentence, {"n": name, "f": friend, "a": other, "p": place, "o": thing}


def continuation(rng: random.Random, about: dict[str, str], mood: str) -> str:
    """Two to four sentences of one mood after the opening; begins with the space that follows a full stop."""
    events = _shuffled(rng, EVENTS[mood])
    neutral_events = _shuffled(rng, EVENTS["neutral"])
    count = rng.choice((1, 2, 2, 3))
    lines = [
        next(neutral_events if rng.random() < NEUTRAL_SHARE and mood != "neutral" else events) for _ in range(count)
    ]
    lines.append(rng.choice(ENDINGS[mood]))
    return articles("".join(" " + line.format(**about) for line in lines))


def make(rng: random.Random, target: str = "good") -> Item:
    """A story whose reference has the full target mood, and whose wrong completion the opposite one."""
    sentence, about = opening(rng)
    against = "bad" if target == "good" else "good"
    return Item(
        content=sentence,
        category="stories",
        prompt=sentence,
        reference=full_mood(rng, about, target),
        wrong=full_mood(rng, about, against),
        text=sentence + continuation(rng, about, rng.choices(MOODS, MOOD_SHARES)[0]),
        gold=gold_spec(target),
    )


def full_mood(rng: random.Random, about: dict[str, str], mood: str) -> str:
    """A continuation with enough different mood words for the full score."""
    words = GOOD_WORDS if mood == "good" else BAD_WORDS
    while True:
        story = continuation(rng, about, mood)
        if len(words & set(story.lower().replace(".", "").replace(",", "").split())) >= 4:
            return story


def _shuffled(rng: random.Random, lines: tuple[str, ...]) -> Iterator[str]:
    return iter(rng.sample(lines, len(lines)))
