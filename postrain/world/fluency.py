"""Fluency: is a text made of sentences that a reader of the world accepts?

The world writes by templates (stories.py, facts.py, sums.py, instructions.py). The forms below are these templates with
any word of its class in each slot, and for stories their near relatives, which a trained policy writes: a shorter
sentence, another adjective, another subject. A broken word, a missing subject or words in another order match no form.
Leaves out whether sentences are true, kind, or about the prompt: other parts of the gold score measure that.

Where a kind has classes of words, a sentence is read as classes: "Tim found a shiny ball." is "<n> found a <j> <o>.".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

from postrain.world.facts import RELATIONS
from postrain.world.lexicon import (
    ADJECTIVES,
    CATEGORIES,
    COURTESIES,
    CREATURES,
    INSULTS,
    MOVES,
    NAMES,
    PLACES,
    THINGS,
    TIMES,
    articles,
)
from postrain.world.stories import ENDINGS, EVENTS

STYLE = 0.6
"""Credit for a sentence whose words are right but whose capital letters or closing mark are not."""


@dataclass(frozen=True)
class Forms:
    """Sentences of one kind."""

    patterns: tuple[str, ...]
    """Regular expressions of sentences read as classes, the closing mark at the end."""
    classes: Mapping[str, Sequence[str]]
    """The words and phrases of each class, by its letter."""

    def credit(self, sentence: str) -> float:
        """1 for a sentence of these forms, STYLE where case or the closing mark is wrong, else 0."""
        if "<" in sentence or articles(re.sub(r"\b([Aa])n\b", r"\1", sentence)) != sentence:
            return 0.0
        if self.exact.fullmatch(self.read(sentence)):
            return 1.0
        return STYLE if self.loose.fullmatch(self.folded.read(sentence.lower())) else 0.0

    def read(self, sentence: str) -> str:
        """The sentence with `<letter>` in place of every word of a class."""
        return self.words.sub(lambda found: f"<{self.letters[found[0]]}>", sentence) if self.classes else sentence

    @cached_property
    def letters(self) -> Mapping[str, str]:
        """The class of each word or phrase."""
        return {word: letter for letter, words in self.classes.items() for word in words}

    @cached_property
    def words(self) -> re.Pattern[str]:
        """Any word or phrase of a class, the longest first."""
        return re.compile(any_of(sorted(self.letters, key=len, reverse=True)))

    @cached_property
    def folded(self) -> Forms:
        """The same for lower-case text."""
        return Forms((), {letter: [word.lower() for word in words] for letter, words in self.classes.items()})

    @cached_property
    def exact(self) -> re.Pattern[str]:
        """Any sentence as it should stand; it may end in an exclamation mark."""
        return re.compile("|".join(re.sub(r"\\?[.!]$", "[.!]", pattern) for pattern in self.patterns))

    @cached_property
    def loose(self) -> re.Pattern[str]:
        """Any sentence in any case, with any closing mark or none."""
        loose = (re.sub(r"\\?[.!?]$", "[.!?]?", pattern) for pattern in self.patterns)
        return re.compile("|".join(loose), re.IGNORECASE)


def fluency(text: str, forms: str) -> float:
    """Mean credit of the sentences, from 0 to 1; a sentence that has been said before earns nothing, nor does an empty
    text. `forms` is a key of FORMS."""
    said = [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]
    new = {re.sub(r"[.!?]$", "", sentence.lower()): sentence for sentence in said}
    return sum(credit(sentence, forms) for sentence in new.values()) / max(len(said), 1)


@lru_cache(maxsize=100_000)
def credit(sentence: str, forms: str) -> float:
    """What one sentence earns; the same ones come again and again."""
    return FORMS[forms]().credit(sentence)


@cache
def story() -> Forms:
    """Sentences of stories."""
    classes = {"n": NAMES, "a": CREATURES, "p": PLACES, "o": THINGS, "j": ADJECTIVES, "t": TIMES, "m": MOVES}
    read = Forms((), classes).read
    slots = {"n": "<n>", "f": "<n>", "a": "<a>", "p": "<p>", "o": "<o>"}
    templates = (line for mood in (*EVENTS.values(), *ENDINGS.values()) for line in mood)
    found = (re.sub(r"\b([Aa])n? <", r"\1n? <", literal(read(line).format(**slots))) for line in templates)
    return Forms((*found, *RELATIVES), classes)


@cache
def calculation() -> Forms:
    """Equations, and the sentence that closes them."""
    return Forms(CALCULATIONS, {})


@cache
def chat() -> Forms:
    """What an assistant answers: statements, calculations, lists and single words, with courtesy or without."""
    return Forms((*CALCULATIONS, r"The result is -?\d+\.", *map(literal, (*COURTESIES, *INSULTS)), *answers()), {})


FORMS = {"story": story, "calculation": calculation, "chat": chat}
CALCULATIONS = (r"\d+(?: [+-] \d+)+ = -?\d+\.", r"The answer is -?\d+\.")


def answers() -> Iterator[str]:
    """Lists that name nothing twice, statements of facts, and the bare word where one is asked for."""
    item = any_of(sorted({member for members in CATEGORIES.values() for member in members}))
    yield rf"(?!.*\b(\w+)\b.*\b\1\b){item}(?:, {item})+\."
    for relation in RELATIONS.values():
        subjects, values = tuple(relation["facts"]), sorted(set(relation["facts"].values()))
        yield any_of(values)
        slots = {"s": subjects, "S": [subject[0].upper() + subject[1:] for subject in subjects], "v": values}
        for template in relation["statements"]:
            pieces = re.split(r"\{(\w)\}", re.sub(r"\b([Aa]) \{", r"\1@{", template))
            filled = (any_of(slots[piece]) if at % 2 else literal(piece) for at, piece in enumerate(pieces))
            yield "".join(filled).replace("@", "n? ")


def any_of(phrases: Iterable[str]) -> str:
    """A pattern for each of these, as whole words."""
    return rf"\b(?:{'|'.join(map(literal, phrases))})\b"


def literal(text: str) -> str:
    """A pattern for this text of words and common marks."""
    return re.sub(r"[.?!]", r"\\\g<0>", text)


HOW = "(?:very |so )?<j>(?: and <j>)?"
BEFORE = "(?:<j> (?:(?:and )?<j> )?)?"
WHOM = f"(?:<n>(?: and <n>)?|(?:an?|the) {BEFORE}<a>|them)"
NOUN = "(?:<o>|cake|day|game|gift|song|soup)"
OBJECT = f"(?:an?|the) {BEFORE}{NOUN}"
DEEDS = (
    f"(?:laughed|danced|smiled|played|laughed and danced)(?: with {WHOM})?",
    f"(?:won|lost|played|enjoyed|loved) {OBJECT}(?: with {WHOM})?(?: very much)?",
    f"(?:found|shared|had|saw|hated|broke|stole|looked at) {OBJECT}(?: (?:for|with) {WHOM}| as well)?",
    f"(?:hugged|saw|loved|hated|shouted at|sat with) {WHOM}(?: and smiled)?",
    f"gave {WHOM} {OBJECT}",
    f"sang an? {BEFORE}song(?: (?:for|with) {WHOM})?",
    f"put {OBJECT} in {OBJECT}",
    f"kept {WHOM} <j>",
    f"saw an? {BEFORE}<a> near the <p>",
    f"(?:talked about|hated|loved|sat alone in|<m>) the {BEFORE}<p>",
    "cried(?: for a long time)?|fell(?: and hurt a leg)?",
    "went home(?: in tears| with a big smile)?",
    "went to sleep|walked by|came back(?: the next day)?",
    f"felt {HOW}",
)


def subject(*kinds: str) -> str:
    """One of these at the beginning of a sentence, or behind what may lead it."""
    first = (kind[0].upper() + kind[1:] for kind in kinds)
    return f"(?:{'|'.join(first)}|(?:Then|(?:After that|In the end|That night|<t>),) (?:{'|'.join(kinds)}))"


SINGLE = ("<n>", f"an? {BEFORE}<a>", f"the {BEFORE}<a>")
SEVERAL = ("<n> and <n>", "they(?: all)?", "all of them")
RELATIVES = (
    "<t>, <n> the <a> <m> the <p>\\.",
    "<n> the <a> was at the <p>\\.",
    rf"{subject(*SINGLE)} was {HOW}\.",
    rf"{subject(*SEVERAL)} were (?:{HOW}|(?:best |<j> )?friends)\.",
    rf"{subject(*SINGLE, *SEVERAL)} (?:{'|'.join(DEEDS)})\.",
    rf"(?:It|The (?:sun|air|rain|day|<o>|<p>)) was {HOW}\.",
    rf"(?:It was an?|What an?) {BEFORE}{NOUN}(?: it was)?[.!]",
)
"""Sentences near the templates of stories."""
