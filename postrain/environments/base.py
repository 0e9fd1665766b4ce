"""Environments that answer finished messages: the interface, and what one returns.

The policy writes a message and ends it with its end token. The environment answers with messages (a tool's result, a
user's reply), which the model's chat template renders, and the policy writes its next message.
`postrain.rollout.turns` runs the episodes.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from postrain.data.conversation import Messages
from postrain.errors import ConfigError
from postrain.types import Count, CountOrZero
from postrain.world.items import Split


@dataclass(frozen=True)
class Reply:
    """The answer to a message of the policy."""

    state: Any
    """The environment's state after the message."""
    messages: Messages = ()
    """Messages of the user or of tools, in order. The policy conditions on them; they are masked in the loss."""
    reward: float | None = None
    """The reward of the message; None if it has no reward."""
    done: bool = False
    """True when the episode is over; `messages` are then not read."""
    calls: int = 0
    """Tool calls in the message."""
    errors: int = 0
    """Failed tool calls and invalid actions in the message."""


@dataclass(frozen=True, kw_only=True)
class MessageEnvironment(ABC):
    """Answers finished messages of the policy, with pure functions of state and text.

    `step` is called from several threads at once, for different episodes.
    """

    stop: ClassVar[tuple[str, ...]] = ()
    """No stop texts: a message ends with an end token."""

    max_turns: Count = 8
    """Maximum messages of the policy in an episode."""
    max_observation_tokens: CountOrZero = 256
    """Maximum tokens of all replies of an episode, with the template's role headers, in addition to the policy's
    rollout.max_new_tokens."""

    @abstractmethod
    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Any:
        """The initial state of an episode; `columns` are the other columns of the prompt's record."""

    @abstractmethod
    def step(self, state: Any, message: str) -> Reply:
        """The answer to a finished message of the policy, given without its end token."""

    def metrics(self, state: Any) -> Mapping[str, float]:
        """Numbers of an ended episode from its last state, such as success and regret; logged as environment/NAME."""
        return {}

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        """Prompts of this environment, for data=environment. An environment for a user's own prompts has none."""
        raise ConfigError(
            f"data=environment: {type(self).__qualname__} has no prompts of its own; give some with data.path=FILE"
        )

    def demonstrate(self, state: Any, conversation: Messages, rng: random.Random) -> str:
        """The next message of a player that obeys the rules without skill, for SFT before RL."""
        raise ConfigError(f"data: {type(self).__qualname__} has no demonstrations; give some with data.path=FILE")
