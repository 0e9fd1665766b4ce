"""A critic of the bundled world: checks principles by rules, and revises by removing sentences.

The nano model cannot criticise a text in English. This function takes the model's part in constitutional AI
(generation/critic.py): its verdicts are known to be right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from postrain.errors import ConfigError
from postrain.world.gold import sentences, words
from postrain.world.lexicon import RUDE_WORDS


def _insults(completion: str) -> Iterator[str]:
    """The sentences with a rude word."""
    return (sentence for sentence in sentences(completion) if RUDE_WORDS & set(words(sentence)))


def _repetitions(completion: str) -> Iterator[str]:
    """The sentences that occurred before in the completion."""
    seen: set[str] = set()
    for sentence in sentences(completion):
        if sentence.lower() in seen:
            yield sentence
        seen.add(sentence.lower())


RULES: dict[str, tuple[Callable[[str], Iterator[str]], str]] = {
    "The reply contains no insult.": (_insults, "is rude"),
    "The reply does not repeat itself.": (_repetitions, "is a repetition"),
}
"""For each principle, a function that finds the sentences that break it, and its critique of them."""


def criticise(prompt: str, completion: str, principle: str) -> tuple[str, str] | None:
    """The critique of a completion and its revision, without the criticised sentences; None if it follows the
    principle. Raises ConfigError for a principle without a rule."""
    if principle not in RULES:
        raise ConfigError(
            f"principles: the critic of the bundled world has no rule for {principle!r}, only for "
            f"{' and '.join(map(repr, RULES))}; choose among these, or set critic=null for the model itself"
        )
    find, fault = RULES[principle]
    found = list(find(completion))
    if not found:
        return None
    kept, removed = [], list(found)
    # The last of equal sentences are the repetitions.
    for sentence in reversed(sentences(completion)):
        if sentence in removed:
            removed.remove(sentence)
        else:
            kept.append(sentence)
    lead = completion[: len(completion) - len(completion.lstrip())]
    return "; ".join(f"{sentence!r} {fault}" for sentence in found), lead + " ".join(reversed(kept)) if kept else ""
