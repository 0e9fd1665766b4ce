"""Data of environments: their own prompts (data=environment), and demonstrations for SFT before RL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from postrain.data.conversation import Message, Messages, user
from postrain.data.readers import Row, Table
from postrain.data.rendering import as_mapping
from postrain.data.sources import Loaded, Source
from postrain.environments.base import MessageEnvironment
from postrain.errors import ConfigError
from postrain.types import Seed, Size
from postrain.world.items import Split, generator


@dataclass(frozen=True, kw_only=True)
class EnvironmentPrompts(Source):
    """The prompts of an environment."""

    environment: MessageEnvironment
    """The environment: ${environment}."""
    count: Size = 2000
    """Number of training rows."""
    seed: Seed = 0
    """Seed of the rows."""

    def __post_init__(self) -> None:
        if not isinstance(self.environment, MessageEnvironment):
            raise ConfigError(
                f"data=environment: {type(self.environment).__qualname__} has no prompts of its own; choose "
                "environment=guess_number or another with prompts, or other data"
            )

    def load(self, *, eval_rows: int) -> Loaded:
        return Loaded(self._table("train", self.count), self._table("eval", eval_rows))

    def _table(self, split: Split, count: int) -> Table:
        return _table(f"prompts of {type(self.environment).__qualname__} ({split})", self._rows(split, count))

    def _rows(self, split: Split, count: int) -> list[dict[str, Any]]:
        return self.environment.make_rows(split, count, self.seed)


@dataclass(frozen=True, kw_only=True)
class Demonstrations(Source):
    """Episodes of unskilled players of several environments, as conversations for method=sft."""

    environments: Mapping[str, MessageEnvironment]
    """Environments by name; every one gets the same share of the rows."""
    count: Size = 2000
    """Number of training rows."""
    seed: Seed = 0
    """Seed of the rows."""

    def __post_init__(self) -> None:
        if not self.environments:
            raise ConfigError("data.source.environments: expected at least one environment, got none")

    def load(self, *, eval_rows: int) -> Loaded:
        return Loaded(self._table("train", self.count), self._table("eval", eval_rows))

    def _table(self, split: Split, count: int) -> Table:
        each = -(-count // len(self.environments))
        played = [self._episodes(name, environment, split, each) for name, environment in self.environments.items()]
        rows = [row for rows in zip(*played, strict=True) for row in rows]
        return _table(f"demonstrations of {', '.join(self.environments)} ({split})", rows[:count])

    def _episodes(self, name: str, environment: MessageEnvironment, split: Split, count: int) -> list[dict[str, Any]]:
        rng = generator(self.seed, "demonstrations", name, split)

        def player(state: Any, conversation: Messages) -> str:
            return environment.demonstrate(state, conversation, rng)

        return [play(environment, row, player) for row in environment.make_rows(split, count, self.seed)]


def play(
    environment: MessageEnvironment, row: Mapping[str, Any], player: Callable[[Any, Messages], str]
) -> dict[str, Any]:
    """An episode of `player(state, conversation)` as a row of `messages`."""
    columns = {name: value for name, value in row.items() if name != "prompt"}
    conversation = user(row["prompt"])
    state = environment.reset(row["prompt"], columns)
    for _ in range(environment.max_turns):
        written = player(state, conversation)
        conversation = (*conversation, Message("assistant", written))
        reply = environment.step(state, written)
        if reply.done:
            break
        state, conversation = reply.state, (*conversation, *reply.messages)
    while conversation[-1].role != "assistant":
        conversation = conversation[:-1]
    return {"messages": [as_mapping(message) for message in conversation]}


def _table(name: str, rows: list[dict[str, Any]]) -> Table:
    return Table(name, "row", tuple(Row(number, values) for number, values in enumerate(rows)))
