"""Guess a number from 1 to n: each wrong guess is answered with the numbers that are left.

The optimum is known: halving the numbers needs the mean depth of a balanced search tree, at most log2 n questions
rounded up. A player that guesses any number that is left needs 2 (1 + 1/n) H_n − 3 questions on average.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Interval

from postrain.data.conversation import Messages, user
from postrain.environments.base import MessageEnvironment, Reply
from postrain.types import Count
from postrain.world.items import Split, generator, split_of
from postrain.world.lexicon import CREATURES, NAMES

NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Game:
    """The state of a game."""

    target: int
    low: int
    high: int
    """The numbers that are left are from low to high."""
    questions: int = 0
    found: bool = False


@dataclass(frozen=True, kw_only=True)
class GuessNumber(MessageEnvironment):
    """The policy writes a number; the first number of its message is the guess.

    The reward of a found number is 1 − (questions − 1) / max_turns, and 0 if it is not found.
    """

    n: Annotated[int, Interval(ge=2, le=1_000_000)] = 16
    """Numbers to choose from, 1 to n."""
    max_turns: Count = 8
    """Maximum number of questions."""

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Game:
        return Game(int(columns["answer"]), 1, self.n)

    def step(self, state: Game, message: str) -> Reply:
        game = replace(state, questions=state.questions + 1)
        written = NUMBER.search(message)
        guess = int(written[0]) if written and len(written[0]) < 10 else 0
        if guess == game.target:
            reward = 1 - (game.questions - 1) / self.max_turns
            return Reply(replace(game, found=True), reward=reward, done=True)
        possible = game.low <= guess <= game.high
        if possible:
            game = replace(game, **({"low": guess + 1} if guess < game.target else {"high": guess - 1}))
        return Reply(game, user(f"No. It is from {game.low} to {game.high}."), errors=not possible)

    def metrics(self, state: Game) -> Mapping[str, float]:
        """success; questions; regret: the questions above those of the best player, max_turns for a lost game."""
        questions = state.questions if state.found else self.max_turns
        return {
            "success": float(state.found),
            "questions": float(questions),
            "regret": questions - best_questions(self.n),
        }

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        rng = generator(seed, "guess_number", split)
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            # The names have nothing to do with the number: they make held-out prompts differ from those of training.
            who = f"{rng.choice(NAMES)} the {rng.choice(CREATURES)} and {rng.choice(NAMES)} the {rng.choice(CREATURES)}"
            if split_of(who) == split:
                prompt = f"{who} have a number from 1 to {self.n}. What is it? Write a number."
                rows.append({"prompt": prompt, "answer": str(rng.randint(1, self.n))})
        return rows

    def demonstrate(self, state: Game, conversation: Messages, rng: random.Random) -> str:
        """Any number that is left."""
        return str(rng.randint(state.low, state.high))


def best_questions(n: int) -> float:
    """The mean number of questions of the best player: the mean depth of a balanced search tree of n numbers."""
    total, depth, left = 0, 1, n
    while left:
        here = min(left, 2 ** (depth - 1))
        total, depth, left = total + depth * here, depth + 1, left - here
    return total / n
