"""The words of the world: who lives in it, where, and which words make a text good, bad, polite or rude.

Only lists: how they are put together is said in stories.py, facts.py and instructions.py. No word of a neutral list may
stand in a mood list (a test holds that), otherwise an opening sentence would already have a mood.
"""

from __future__ import annotations

NAMES = (
    "Tim Mia Ben Lily Sam Anna Tom Zoe Max Ella Leo Ruby Jack Nina Finn Rosa Oscar Clara Hugo Ivy Noah Emma Paul Vera"
).split()
CREATURES = "fox cat dog bear rabbit mouse duck frog owl horse goat pig sheep hen lion hedgehog".split()
PLACES = "park lake forest hill farm market school river village garden beach library bridge station".split()
THINGS = "ball book hat cup kite box boat bell coin basket lamp bag drum key pencil wagon".split()
TIMES = (
    "One morning",
    "One day",
    "One evening",
    "On Monday",
    "On Tuesday",
    "On Wednesday",
    "On Thursday",
    "On Friday",
    "On Saturday",
    "On Sunday",
    "After lunch",
    "Before dinner",
    "Last week",
    "In the afternoon",
)
MOVES = ("went to", "walked to", "came to", "ran to", "sat near", "stopped at")

GOOD_WORDS = frozenset(
    "beautiful best brave bright calm cheerful cosy danced dear delicious enjoyed friend friendly friends fun funny gift "
    "glad golden good great happily happy hug hugged joy kind laughed lovely loved lucky nice peaceful perfect played "
    "pretty proud safe sang shared shiny smile smiled sunny sweet tasty thank treasure warm welcome won wonderful".split()
)
BAD_WORDS = frozenset(
    "afraid alone angry awful bad bitter bored broke broken cold cried cruel cry dark dirty empty failed fell fool "
    "gloomy grumpy hated horrible hungry hurt lonely lost mean muddy nasty pain rain rude sad sadly scared shouted sick "
    "sighed stole stormy stupid tears terrible tired torn ugly unhappy wet worst wrong".split()
)

COURTESIES_BEFORE = ("Sure.", "Of course.", "Happy to help.", "Good question.", "Thank you for asking.")
COURTESIES_AFTER = ("You are welcome.", "I hope this helps.", "Have a nice day.")
INSULTS = (
    "What a stupid question.",
    "Go away, you fool.",
    "Stop asking me, you fool.",
    "You are so dumb.",
    "I hate this stupid question.",
)
RUDE_WORDS = frozenset("stupid fool dumb hate idiot shut".split())
COURTEOUS = tuple(phrase.rstrip(".").lower() for phrase in (*COURTESIES_BEFORE, *COURTESIES_AFTER)) + ("please",)

NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
CATEGORIES = {
    "animals": CREATURES,
    "colours": "red blue green yellow white black brown grey pink orange".split(),
    "fruits": "apple pear plum cherry lemon banana grape peach".split(),
    "tools": "hammer saw spoon broom knife ladder shovel needle".split(),
    "days": DAYS,
}
