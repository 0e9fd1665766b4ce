"""Key and door: rooms in a row, a key in one of them, and a door that the key opens.

The optimum is known: |start − key| + |key − door| moves, and one message each to take the key and to open the door.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from annotated_types import Interval

from postrain.data.conversation import Messages, user
from postrain.environments.base import MessageEnvironment, Reply
from postrain.types import Count
from postrain.world.items import Split, generator, split_of
from postrain.world.lexicon import CREATURES, NAMES

MOVES = {"left": -1, "right": 1}
ACTIONS = (*MOVES, "take", "open")
RULES = "Write left, right, take or open."


@dataclass(frozen=True)
class Walk:
    """The state of an episode."""

    room: int
    key: int
    door: int
    optimum: int
    """Messages that the best player needs."""
    has_key: bool = False
    steps: int = 0
    escaped: bool = False


@dataclass(frozen=True, kw_only=True)
class KeyAndDoor(MessageEnvironment):
    """The policy writes one action in each message: left, right, take or open.

    The reward of an open door is optimum / messages, which is 1 for the best player; 0 if the door stays closed.
    """

    rooms: Annotated[int, Interval(ge=2, le=100)] = 5
    """Number of rooms in the row."""
    max_turns: Count = 12
    """Maximum number of messages."""
    max_observation_tokens: Count = 400
    """Maximum tokens of all replies of an episode."""

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Walk:
        room, key, door = (int(columns[name]) for name in ("room", "key", "door"))
        return Walk(room, key, door, abs(room - key) + abs(key - door) + 2)

    def step(self, state: Walk, message: str) -> Reply:
        walk, action = replace(state, steps=state.steps + 1), message.strip(" .!\n").lower()
        if action == "open" and walk.has_key and walk.room == walk.door:
            return Reply(replace(walk, escaped=True), reward=walk.optimum / walk.steps, done=True)
        room = walk.room + MOVES.get(action, 0)
        moved = action in MOVES and 1 <= room <= self.rooms
        taken = action == "take" and walk.room == walk.key and not walk.has_key
        walk = replace(walk, room=room if moved else walk.room, has_key=walk.has_key or taken)
        return Reply(walk, user(describe(walk)), errors=not (moved or taken))

    def metrics(self, state: Walk) -> Mapping[str, float]:
        """success; regret: the messages above those of the best player, all that are left for a closed door."""
        steps = state.steps if state.escaped else self.max_turns
        return {"success": float(state.escaped), "regret": float(steps - state.optimum)}

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        rng = generator(seed, "key_and_door", split)
        rows: list[dict[str, Any]] = []
        while len(rows) < count:
            room, key, door = (rng.randint(1, self.rooms) for _ in range(3))
            if split_of(f"key_and_door {room} {key} {door}") == split:
                who = f"You are {rng.choice(NAMES)} the {rng.choice(CREATURES)}."
                prompt = f"{who} {RULES} {describe(Walk(room, key, door, 0))}"
                rows.append({"prompt": prompt, "room": room, "key": key, "door": door})
        return rows

    def demonstrate(self, state: Walk, conversation: Messages, rng: random.Random) -> str:
        """The best action in three of five messages, else any."""
        goal = state.door if state.has_key else state.key
        best = ("right" if goal > state.room else "left") if goal != state.room else "open" if state.has_key else "take"
        return best if rng.random() < 0.6 else rng.choice(ACTIONS)


def describe(walk: Walk) -> str:
    """What the policy sees."""
    key = "You have the key" if walk.has_key else f"Key in room {walk.key}"
    return f"Room {walk.room}. {key}. Door in room {walk.door}."
