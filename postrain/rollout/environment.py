"""The two kinds of environments of a rollout: one continues the policy's text, the other answers its messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from postrain.environments.base import MessageEnvironment
from postrain.types import Count, CountOrZero, Step


class TextEnvironment(Protocol):
    """Continues the text of the policy at a stop text, with pure functions of state and text."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop texts that pass the turn to the environment; they stay part of the policy's turn."""
        ...

    @property
    def max_turns(self) -> Count:
        """Maximum number of turns of the policy."""
        ...

    @property
    def max_observation_tokens(self) -> CountOrZero:
        """Maximum tokens of all observations of an episode, in addition to the policy's `max_new_tokens`."""
        ...

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Any:
        """The initial state of an episode; `columns` are the other columns of the prompt's record."""
        ...

    def step(self, state: Any, turn: str) -> Step:
        """The answer to a turn that ended with one of `stop`."""
        ...


Environment = TextEnvironment | MessageEnvironment


class SingleTurn:
    """No environment: the policy writes once."""

    stop: tuple[str, ...] = ()
    max_turns: Count = 1
    max_observation_tokens: CountOrZero = 0

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> None:
        """No state."""

    def step(self, state: Any, turn: str) -> Step:
        """Never called: there is no stop text."""
        return Step("", state, done=True)


SINGLE_TURN = SingleTurn()
