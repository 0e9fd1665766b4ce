"""Everyday facts, each with several ways to state it and several ways to ask for it.

All facts occur in running text of both splits (they are what a base model knows); what the split holds apart is the facts
that are *asked about*, so that evaluation asks for knowledge nobody was tuned to answer with.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

from postrain.world.items import Gold, Item
from postrain.world.lexicon import COURTESIES_BEFORE, DAYS, MONTHS

WEIGHTS = {"correct": 0.5, "format": 0.15, "polite": 0.15, "non_repetition": 0.1, "concise": 0.1}

RELATIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, str]]] = {
    "colour": (
        ("The colour of {s} is {v}.", "If you look at {s}, you see {v}."),
        ("What is the colour of {s}?", "Which colour has {s}?", "Tell me the colour of {s}.", "{S} has what colour?"),
        dict(
            p.split(":")
            for p in (
                "grass:green,snow:white,the sky:blue,blood:red,coal:black,milk:white,a lemon:yellow,a banana:yellow,"
                "a cherry:red,a plum:purple,a frog:green,a crow:black,a carrot:orange,mud:brown,chocolate:brown,"
                "an elephant:grey,a flamingo:pink,the sea:blue,a leaf:green,a tomato:red"
            ).split(",")
        ),
    ),
    "sound": (
        ("A {s} says {v}.", "The sound of a {s} is {v}."),
        ("What does a {s} say?", "Which sound does a {s} make?", "Tell me the sound of a {s}.", "A {s} says what?"),
        dict(
            p.split(":")
            for p in (
                "dog:woof,cat:meow,cow:moo,duck:quack,sheep:baa,pig:oink,owl:hoot,snake:hiss,lion:roar,"
                "mouse:squeak,bee:buzz,rooster:crow"
            ).split(",")
        ),
    ),
    "home": (
        ("A {s} lives in a {v}.", "The home of a {s} is a {v}."),
        (
            "Where does a {s} live?",
            "What is the home of a {s}?",
            "Tell me the home of a {s}.",
            "In what does a {s} live?",
        ),
        dict(
            p.split(":")
            for p in (
                "bird:nest,bee:hive,rabbit:burrow,spider:web,horse:stable,pig:sty,king:castle,bear:cave,hen:coop,"
                "fish:pond,farmer:farmhouse,beaver:lodge"
            ).split(",")
        ),
    ),
    "legs": (
        ("A {s} has {v} legs.", "You can count {v} legs on a {s}."),
        ("How many legs has a {s}?", "Tell me how many legs a {s} has.", "A {s} has how many legs?"),
        dict(
            p.split(":")
            for p in (
                "spider:eight,dog:four,bird:two,bee:six,crab:ten,snake:zero,horse:four,beetle:six,duck:two,cow:four,"
                "fish:zero,child:two"
            ).split(",")
        ),
    ),
    "food": (
        ("A {s} eats {v}.", "The food of a {s} is {v}."),
        ("What does a {s} eat?", "Which food does a {s} eat?", "Tell me the food of a {s}.", "A {s} eats what?"),
        dict(
            p.split(":")
            for p in (
                "cow:grass,rabbit:carrots,monkey:bananas,cat:fish,mouse:cheese,squirrel:nuts,panda:bamboo,bear:honey,"
                "dog:bones,bird:seeds,horse:hay,frog:flies"
            ).split(",")
        ),
    ),
    "tool": (
        ("You {s} with a {v}.", "A {v} is the tool to {s}."),
        ("What do you {s} with?", "Which tool do you use to {s}?", "Tell me the tool to {s}.", "With what do you {s}?"),
        dict(
            p.split(":")
            for p in (
                "hit nails:hammer,cut wood:saw,eat soup:spoon,sweep the floor:broom,cut bread:knife,dig a hole:shovel,"
                "sew a shirt:needle,open a door:key,write a letter:pen,tell the time:clock,dry your hands:towel,"
                "comb your hair:comb"
            ).split(",")
        ),
    ),
    "day": (
        ("The day after {s} is {v}.", "After {s} comes {v}."),
        ("Which day comes after {s}?", "What is the day after {s}?", "Tell me the day after {s}."),
        {day: DAYS[(i + 1) % 7] for i, day in enumerate(DAYS)},
    ),
    "month": (
        ("The month after {s} is {v}.", "The month of {s} is followed by {v}."),
        ("Which month comes after {s}?", "What is the month after {s}?", "Tell me the month after {s}."),
        {month: MONTHS[(i + 1) % 12] for i, month in enumerate(MONTHS)},
    ),
    "opposite": (
        ("The opposite of {s} is {v}.", "If it is not {s}, it is {v}."),
        ("What is the opposite of {s}?", "Which word is the opposite of {s}?", "Tell me the opposite of {s}."),
        dict(
            p.split(":")
            for p in (
                "hot:cold,big:small,fast:slow,up:down,day:night,old:young,full:empty,long:short,hard:soft,high:low,"
                "loud:quiet,open:closed,early:late,left:right,strong:weak,rich:poor,dry:wet,clean:dirty,near:far,"
                "first:last"
            ).split(",")
        ),
    ),
    "capital": (
        ("The capital of {s} is {v}.", "{v} is the capital of {s}."),
        ("What is the capital of {s}?", "Which city is the capital of {s}?", "Tell me the capital of {s}."),
        dict(
            p.split(":")
            for p in (
                "France:Paris,Italy:Rome,Spain:Madrid,Japan:Tokyo,Egypt:Cairo,Norway:Oslo,Greece:Athens,Austria:Vienna,"
                "Peru:Lima,Cuba:Havana,Poland:Warsaw,Portugal:Lisbon"
            ).split(",")
        ),
    ),
    "young": (
        ("A young {s} is called a {v}.", "The child of a {s} is a {v}."),
        ("What is a young {s} called?", "What do you call a young {s}?", "Tell me the name of a young {s}."),
        dict(
            p.split(":")
            for p in (
                "dog:puppy,cat:kitten,cow:calf,sheep:lamb,horse:foal,bear:cub,duck:duckling,frog:tadpole,goat:kid,"
                "hen:chick,pig:piglet,deer:fawn"
            ).split(",")
        ),
    ),
    "place": (
        ("You find {s} in a {v}.", "A {v} is a place with {s}."),
        ("Where do you find {s}?", "Which place has {s}?", "Tell me a place with {s}.", "In which place are {s}?"),
        dict(
            p.split(":")
            for p in (
                "books:library,trees:forest,teachers:school,trains:station,doctors:hospital,cows:farm,boats:harbour,"
                "swings:playground,flowers:garden,beds:bedroom,pots:kitchen,camels:desert"
            ).split(",")
        ),
    ),
}


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
        return self._filled(rng.choice(RELATIONS[self.relation][0]), self.value)

    def plain(self, value: str) -> str:
        """The first way to state it, with any value."""
        return self._filled(RELATIONS[self.relation][0][0], value)

    def question(self, rng: random.Random) -> str:
        return self._filled(rng.choice(RELATIONS[self.relation][1]), self.value)

    def _filled(self, template: str, value: str) -> str:
        filled = template.format(s=self.subject, v=value, S=self.subject[0].upper() + self.subject[1:])
        return filled[0].upper() + filled[1:]


@cache
def all_facts() -> tuple[Fact, ...]:
    """Every fact of the world."""
    return tuple(
        Fact(relation, subject, value, tuple(sorted(set(pairs.values()) - {value})))
        for relation, (_, _, pairs) in RELATIONS.items()
        for subject, value in pairs.items()
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
