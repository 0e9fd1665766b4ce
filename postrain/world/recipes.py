"""Recipes: running text of a domain that the bundled model was not trained on, for domain adaptation.

Words and sentences differ from those of stories, sums and facts. Only running text: a recipe has no prompt.
"""

from __future__ import annotations

import random

from postrain.world.items import Item
from postrain.world.lexicon import NUMBERS, articles

VEGETABLES = ["carrots", "leeks", "potatoes", "beans", "turnips", "mushrooms", "peppers", "onions", "beets", "peas"]
HERBS = ["thyme", "parsley", "basil", "dill", "sage", "mint", "chives", "rosemary"]
VESSELS = ["pot", "pan", "tray", "bowl", "kettle", "oven"]
FATS = ["butter", "oil", "lard", "cream"]
STEPS = (
    "Peel and chop {n} {v}.",
    "Heat a spoon of {f} in a {s}.",
    "Fry the {v} for {m} minutes.",
    "Stir in the chopped {h}.",
    "Pour {n} cups of stock over the {v}.",
    "Simmer with the lid on for {m} minutes.",
    "Season with salt, pepper and {h}.",
    "Drain the {v} and mash them with {f}.",
    "Bake in a hot {s} until the crust is crisp.",
)
SERVINGS = ("Serve with bread.", "Serve at once, with more {h}.", "Leave to cool, then slice.")


def make(rng: random.Random) -> Item:
    """A recipe of three to five steps, with a title and a serving."""
    about = {
        "v": rng.choice(VEGETABLES),
        "h": rng.choice(HERBS),
        "s": rng.choice(VESSELS),
        "f": rng.choice(FATS),
        "n": rng.choice(NUMBERS[2:9]),
        "m": rng.choice(NUMBERS[4:]),
    }
    steps = sorted(rng.sample(range(len(STEPS)), rng.randint(3, 5)))
    lines = [f"Recipe for {about['v']} with {about['h']}.", *(STEPS[step] for step in steps), rng.choice(SERVINGS)]
    text = articles(" ".join(line.format(**about) for line in lines))
    return Item(content=text, category="recipes", prompt="", reference="", wrong="", text=text, gold={})
