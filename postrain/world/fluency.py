"""Fluency: the share of sentences of a text that match the sentence patterns of the world.

The world is generated from templates (stories.py, facts.py, sums.py, instructions.py). The patterns below are these
templates with any word of the right class in each slot; for stories also similar sentences of a trained policy:
shorter, with another adjective or subject. A broken word, a missing subject or a wrong word order matches no pattern.
Leaves out whether sentences are true, kind, or about the prompt: other parts of the gold score measure that.

Word classes replace words before matching: "Tim found a shiny ball." becomes "<n> found a <j> <o>.".
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
"""Credit for a sentence with the right words but wrong capitals or closing mark."""


@dataclass(frozen=True)
class Forms:
    """The sentence patterns of one kind of text."""

    patterns: tuple[str, ...]
    """Regular expressions of sentences with word classes, including the closing mark."""
    classes: Mapping[str, Sequence[str]]
    """The words and phrases of each class, by the letter of the class."""

    def credit(self, sentence: str) -> float:
        """1 for a matching sentence, STYLE if case or the closing mark is wrong, else 0."""
        if "<" in sentence or articles(re.sub(r"\b([Aa])n\b", r"\1", sentence)) != sentence:
            return 0.0
        if self.exact.fullmatch(self.to_classes(sentence)):
            return 1.0
        return STYLE if self.loose.fullmatch(self.lower_case.to_classes(sentence.lower())) else 0.0

    def to_classes(self, sentence: str) -> str:
        """The sentence with every word of a class replaced by `<letter>`."""
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
    def lower_case(self) -> Forms:
        """The same for lower-case text."""
        return Forms((), {letter: [word.lower() for word in words] for letter, words in self.classes.items()})

    @cached_property
    def exact(self) -> re.Pattern[str]:
        """Matches sentences in the right form; an exclamation mark may end them."""
        return re.compile("|".join(re.sub(r"\\?[.!]$", "[.!]", pattern) for pattern in self.patterns))

    @cached_property
    def loose(self) -> re.Pattern[str]:
        """Matches sentences in any case, with any closing mark or none."""
        loose = (re.sub(r"\\?[.!?]$", "[.!?]?", pattern) for pattern in self.patterns)
        return re.compile("|".join(loose), re.IGNORECASE)


def fluency(text: str, forms: str) -> float:
    """Mean credit of the sentences, from 0 to 1; a repeated sentence and an empty text get 0. `forms` is a key of
    FORMS."""
    found = [sentence for sentence in re.split(r"(?<=[.!?])\s+", text.strip()) if sentence]
    new = {re.sub(r"[.!?]$", "", sentence.lower()): sentence for sentence in found}
    return sum(credit(sentence, forms) for sentence in new.values()) / max(len(found), 1)


@lru_cache(maxsize=100_000)
def credit(sentence: str, forms: str) -> float:
    """The credit of one sentence, cached."""
    return FORMS[forms]().credit(sentence)


@cache
def story() -> Forms:
    """Sentences of stories."""
    classes = {"n": NAMES, "a": CREATURES, "p": PLACES, "o": THINGS, "j": ADJECTIVES, "t": TIMES, "m": MOVES}
    read = Forms((), classes).to_classes
    slots = {"n": "<n>", "f": "<n>", "a": "<a>", "p": "<p>", "o": "<o>"}
    templates = (line for mood in (*EVENTS.values(), *ENDINGS.values()) for line in mood)
    found = (re.sub(r"\b([Aa])n? <", r"\1n? <", literal(read(line).format(**slots))) for line in templates)
    return Forms((*found, *SIMILAR_SENTENCES), classes)


@cache
def calculation() -> Forms:
    """Equations, and the closing sentence."""
    return Forms(CALCULATIONS, {})


@cache
def chat() -> Forms:
    """Answers of an assistant: statements, calculations, lists and single words, with courtesy or without."""
    return Forms((*CALCULATIONS, r"The result is -?\d+\.", *map(literal, (*COURTESIES, *INSULTS)), *answers()), {})


FORMS = {"story": story, "calculation": calculation, "chat": chat}
CALCULATIONS = (r"\d+(?: [+-] \d+)+ = -?\d+\.", r"The answer is -?\d+\.")


def answers() -> Iterator[str]:
    """Patterns of lists without repetition, of statements of facts, and of single-word answers."""
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
    """A pattern that matches any of these phrases as whole words."""
    return rf"\b(?:{'|'.join(map(literal, phrases))})\b"


def literal(text: str) -> str:
    """A pattern for a literal text of words and common marks."""
    return re.sub(r"[.?!]", r"\\\g<0>", text)


ADJECTIVE_PHRASE = "(?:very |so )?<j>(?: and <j>)?"
MODIFIERS = "(?:<j> (?:(?:and )?<j> )?)?"
PERSON = f"(?:<n>(?: and <n>)?|(?:an?|the) {MODIFIERS}<a>|them)"
NOUN = "(?:<o>|cake|day|game|gift|song|soup)"
OBJECT = f"(?:an?|the) {MODIFIERS}{NOUN}"
PREDICATES = (
    f"(?:laughed|danced|smiled|played|laughed and danced)(?: with {PERSON})?",
    f"(?:won|lost|played|enjoyed|loved) {OBJECT}(?: with {PERSON})?(?: very much)?",
    f"(?:found|shared|had|saw|hated|broke|stole|looked at) {OBJECT}(?: (?:for|with) {PERSON}| as well)?",
    f"(?:hugged|saw|loved|hated|shouted at|sat with) {PERSON}(?: and smiled)?",
    f"gave {PERSON} {OBJECT}",
    f"sang an? {MODIFIERS}song(?: (?:for|with) {PERSON})?",
    f"put {OBJECT} in {OBJECT}",
    f"kept {PERSON} <j>",
    f"saw an? {MODIFIERS}<a> near the <p>",
    f"(?:talked about|hated|loved|sat alone in|<m>) the {MODIFIERS}<p>",
    "cried(?: for a long time)?|fell(?: and hurt a leg)?",
    "went home(?: in tears| with a big smile)?",
    "went to sleep|walked by|came back(?: the next day)?",
    f"felt {ADJECTIVE_PHRASE}",
)


def subject(*kinds: str) -> str:
    """A pattern for one of these subjects at the beginning of a sentence or after an introductory phrase."""
    first = (kind[0].upper() + kind[1:] for kind in kinds)
    return f"(?:{'|'.join(first)}|(?:Then|(?:After that|In the end|That night|<t>),) (?:{'|'.join(kinds)}))"


SINGULAR = ("<n>", f"an? {MODIFIERS}<a>", f"the {MODIFIERS}<a>")
PLURAL = ("<n> and <n>", "they(?: all)?", "all of them")
SIMILAR_SENTENCES = (
    "<t>, <n> the <a> <m> the <p>\\.",
    "<n> the <a> was at the <p>\\.",
    rf"{subject(*SINGULAR)} was {ADJECTIVE_PHRASE}\.",
    rf"{subject(*PLURAL)} were (?:{ADJECTIVE_PHRASE}|(?:best |<j> )?friends)\.",
    rf"{subject(*SINGULAR, *PLURAL)} (?:{'|'.join(PREDICATES)})\.",
    rf"(?:It|The (?:sun|air|rain|day|<o>|<p>)) was {ADJECTIVE_PHRASE}\.",
    rf"(?:It was an?|What an?) {MODIFIERS}{NOUN}(?: it was)?[.!]",
)
"""Sentences similar to the story templates."""
