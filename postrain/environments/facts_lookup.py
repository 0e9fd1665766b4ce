"""Questions about invented facts, and a tool that finds them: without the tool, an answer is a guess.

The facts of held-out questions are not in the training questions, so they cannot be learned either.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from postrain.data.conversation import Messages
from postrain.environments.tool_environment import ToolEnvironment, ToolState
from postrain.environments.tools import Tool
from postrain.types import Count, Seed
from postrain.world.items import Split, generator, split_of
from postrain.world.lexicon import CREATURES, NAMES, PLACES

NUMBER = re.compile(r"\d+")
LOWEST, HIGHEST = 21, 99


@dataclass(frozen=True, kw_only=True)
class FactsLookup(ToolEnvironment):
    """How old is Mia the fox of the lake? `search` finds it. The reward is 1 if the answer's last number is right."""

    max_turns: Count = 3
    """Maximum messages of the policy. 1 leaves it without the results of the tool."""
    seed: Seed = 0
    """Seed of the facts."""

    def tools(self, columns: Mapping[str, Any]) -> Sequence[Tool]:
        def search(query: str) -> str:
            """Finds a fact about somebody.

            Args:
                query: Name, kind and place, such as Mia the fox of the lake.
            """
            subject = query.strip(" .?\"'")
            return statement(subject, self.age(subject)) if subject in subjects() else f"Nothing found about {query}."

        return (search,)

    def age(self, subject: str) -> int:
        """The invented fact."""
        return generator(self.seed, "age", subject).randint(LOWEST, HIGHEST)

    def grade(self, columns: Mapping[str, Any], answer: str) -> float:
        return float(NUMBER.findall(answer)[-1:] == [str(columns["answer"])])

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        rng = generator(seed, "facts_lookup", split)
        known = [subject for subject in subjects() if split_of(subject) == split]
        hint = " Write search: and the name to look it up." if self.call_format == "text" else ""
        return [
            {
                "prompt": f"How old is {subject}?{hint}",
                "subject": subject,
                "answer": str(self.age(subject)),
                **self.schemas(),
            }
            for subject in rng.choices(known, k=count)
        ]

    def demonstrate(self, state: ToolState, conversation: Messages, rng: random.Random) -> str:
        """Looks up the right or the wrong name, or guesses; mostly repeats what was found."""
        guess = statement(state.columns["subject"], rng.randint(LOWEST, HIGHEST))
        if len(conversation) > 1:
            found = conversation[-1].content
            return found if rng.random() < 0.8 else guess
        if rng.random() < 0.5:
            return guess
        return f"search: {state.columns['subject'] if rng.random() < 0.7 else rng.choice(tuple(subjects()))}"


@cache
def subjects() -> dict[str, None]:
    """Everybody about whom there is a fact, in order."""
    return dict.fromkeys(f"{name} the {kind} of the {at}" for name in NAMES for kind in CREATURES for at in PLACES)


def statement(subject: str, age: int) -> str:
    """The fact in words."""
    return f"{subject} is {age} years old."
