"""Environments of Gymnasium whose observations can be read as text, unchanged.

An observation is the rendering as text (render_mode=ansi) if there is one, else what the environment returns.
An action is a word or number for a discrete action space, the message itself for a text space. Not supported: other
action spaces.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from postrain.config.extras import load
from postrain.config.schema import Confirm
from postrain.data.conversation import user
from postrain.environments.base import MessageEnvironment, Reply
from postrain.errors import ConfigError, one_line
from postrain.world.items import Split, generator

BACKGROUND = re.compile(r"\x1b\[4\dm(.*?)\x1b\[0m", re.DOTALL)
OTHER_COLOUR = re.compile(r"\x1b\[[\d;]*m")


def is_registered_name(value: Any) -> bool:
    """Whether an id names no module to import."""
    return isinstance(value, str) and ":" not in value


@dataclass(frozen=True)
class Playing:
    """The state of an episode. The Gymnasium environment in it changes with every step."""

    env: Any
    returned: float = 0.0
    """Sum of the rewards."""


@dataclass(frozen=True, kw_only=True)
class GymnasiumEnvironment(MessageEnvironment):
    """Plays `gymnasium.make(id)`; a message is an action, and the reply is the next observation."""

    id: Annotated[str, Confirm("imports this module", harmless=is_registered_name)]
    """Name of a registered environment, such as FrozenLake-v1, or module:NAME."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of gymnasium.make."""
    actions: tuple[str, ...] = ()
    """Words for the actions of a discrete space, in their order; empty: their numbers."""
    instruction: str = ""
    """Text before the first observation."""

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Playing:
        return Playing(self._started(int(columns["seed"]))[0])

    def step(self, state: Playing, message: str) -> Reply:
        action = self._action(state.env, message.strip())
        if action is None:
            return Reply(state, user(self._request(state.env) or "This text is not an action."), errors=1)
        observation, reward, terminated, truncated, _ = state.env.step(action)
        state = replace(state, returned=state.returned + float(reward))
        done = bool(terminated or truncated)
        if done:
            state.env.close()
        messages = () if done else user(as_text(state.env, observation))
        return Reply(state, messages, reward=float(reward), done=done)

    def metrics(self, state: Playing) -> Mapping[str, float]:
        """return: the sum of the rewards of the episode."""
        return {"return": state.returned}

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        rng = generator(seed, "gymnasium", self.id, split)
        seeds = [rng.randrange(2**31) for _ in range(count)]
        return [{"prompt": self._opening(number), "seed": number} for number in seeds]

    def _started(self, seed: int) -> tuple[Any, str]:
        """A new environment and its first observation."""
        gymnasium = load("gymnasium")
        try:
            env = gymnasium.make(self.id, **self.settings)
            if "render_mode" not in self.settings and "ansi" in env.metadata.get("render_modes", ()):
                env.close()
                env = gymnasium.make(self.id, render_mode="ansi", **self.settings)
        except (gymnasium.error.Error, ImportError, TypeError) as error:
            raise ConfigError(f"environment.id={self.id}: {one_line(error, limit=None)}") from None
        kind = type(env.action_space).__name__
        if kind not in ("Discrete", "Text"):
            raise ConfigError(f"environment.id={self.id}: its actions are {kind}; expected Discrete or Text")
        if kind == "Discrete" and self.actions and len(self.actions) != env.action_space.n:
            raise ConfigError(f"environment.actions: {self.id} has {env.action_space.n} actions; write a word for each")
        return env, as_text(env, env.reset(seed=seed)[0])

    def _opening(self, seed: int) -> str:
        env, observation = self._started(seed)
        parts = (self.instruction, observation, self._request(env))
        env.close()
        return "\n".join(part for part in parts if part)

    def _request(self, env: Any) -> str:
        """What the policy is asked to write; empty for a text space."""
        if type(env.action_space).__name__ == "Text":
            return ""
        first = int(env.action_space.start)
        numbers = f"a number from {first} to {first + int(env.action_space.n) - 1}"
        return f"Write {', '.join(self.actions[:-1])} or {self.actions[-1]}." if self.actions else f"Write {numbers}."

    def _action(self, env: Any, message: str) -> Any:
        """The action of a message; None if it is not one."""
        space = env.action_space
        if type(space).__name__ == "Text":
            return message if space.contains(message) else None
        words = [word.lower() for word in self.actions] or [str(int(space.start) + at) for at in range(int(space.n))]
        written = message.strip(" .!\n").lower()
        return int(space.start) + words.index(written) if written in words else None


def as_text(env: Any, observation: Any) -> str:
    """An observation as text. In a rendering, [brackets] mark what a terminal shows on a coloured background."""
    if env.render_mode != "ansi":
        return str(observation)
    return OTHER_COLOUR.sub("", BACKGROUND.sub(r"[\1]", env.render())).strip("\n")
