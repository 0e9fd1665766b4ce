"""Environments of OpenEnv, unchanged, over the WebSocket of their server: one session for each episode.

Client and server exchange JSON: {"type": "reset" or "step", "data": ...}, answered by {"type": "observation", "data":
{"observation": ..., "reward": ..., "done": ...}} or {"type": "error", "data": {"message": ..., "code": ...}}. The
package openenv is only needed where the server runs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Annotated, Any
from urllib.parse import urlsplit

from postrain.config.extras import load
from postrain.config.schema import Confirm
from postrain.data.conversation import user
from postrain.environments.base import MessageEnvironment, Reply
from postrain.errors import ConfigError, one_line
from postrain.rewards.endpoint import Address
from postrain.types import Positive
from postrain.world.items import Split, generator

ANSWERED = ("EXECUTION_ERROR", "VALIDATION_ERROR", "INVALID_JSON")
"""Codes of errors that an action causes; the policy reads them."""


class ServerError(Exception):
    """An error that the server reports; its message has one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.code = code


@dataclass(frozen=True)
class Session:
    """The state of an episode: its connection, and the sum of the rewards."""

    connection: Any
    returned: float = 0.0


@dataclass(frozen=True, kw_only=True)
class OpenEnvEnvironment(MessageEnvironment):
    """Plays the environment of a running OpenEnv server; a message is an action, and the reply is the observation."""

    url: Annotated[Address, Confirm("sends completions to this address")]
    """The server's address, such as http://127.0.0.1:8000. It has to allow as many sessions as episodes are sampled at
    once (its `max_concurrent_envs`)."""
    action_field: str = "message"
    """Field of the action that gets the policy's message; empty: the message itself is the action, as a JSON object."""
    observation_fields: tuple[str, ...] = ()
    """Fields of the observation that the policy reads; empty: all, as JSON."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `reset` besides the seed."""
    instruction: str = ""
    """Text before the first observation."""
    timeout: Positive = 60.0
    """Time limit of a reply in seconds. An episode that reaches it ends with reward 0 and counts as an error."""

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Session:
        connection = self._connected()
        if self._opening(connection, int(columns["seed"])) != columns["opening"]:
            connection.close()
            raise ConfigError(
                f"environment.url={self.url}: two resets with the seed {columns['seed']} begin differently; the first "
                "observation is the prompt, so the environment has to use the seed"
            )
        return Session(connection)

    def step(self, state: Session, message: str) -> Reply:
        action = self._action(message)
        if action is None:
            return Reply(state, user("An action is a JSON object."), errors=1)
        try:
            found = self._ask(state.connection, "step", action)
        except ServerError as error:
            if error.code not in ANSWERED:
                raise ConfigError(f"environment.url={self.url}: {error}") from None
            return Reply(state, user(f"error: {error}"), errors=1)
        except TimeoutError:
            state.connection.close()
            return Reply(state, reward=0.0, done=True, errors=1)
        reward, done = float(found.get("reward") or 0.0), bool(found.get("done"))
        state = replace(state, returned=state.returned + reward)
        return Reply(state, () if done else user(self._text(found)), reward=reward, done=done)

    def metrics(self, state: Session) -> Mapping[str, float]:
        """return: the sum of the rewards of the episode. Ends the session."""
        state.connection.close()
        return {"return": state.returned}

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        rng, connection = generator(seed, "openenv", split), self._connected()
        rows = [self._row(connection, rng.randrange(2**31)) for _ in range(count)]
        connection.close()
        return rows

    def _row(self, connection: Any, seed: int) -> dict[str, Any]:
        opening = self._opening(connection, seed)
        prompt = "\n".join(part for part in (self.instruction, opening) if part)
        return {"prompt": prompt, "seed": seed, "opening": opening}

    def _connected(self) -> Any:
        client = load("websockets.sync.client")
        parts = urlsplit(self.url)
        address = f"{'wss' if parts.scheme == 'https' else 'ws'}://{parts.netloc}{parts.path.rstrip('/')}/ws"
        # No proxy for a server on this machine.
        proxy = None if parts.hostname in ("localhost", "127.0.0.1", "::1") else True
        try:
            # Closed by `metrics`, when the episode has ended.
            return ExitStack().enter_context(
                client.connect(address, open_timeout=self.timeout, max_size=None, proxy=proxy)
            )
        except (OSError, load("websockets").WebSocketException) as error:
            raise ConfigError(f"environment.url={self.url}: no answer ({one_line(error, limit=None)})") from None

    def _opening(self, connection: Any, seed: int) -> str:
        """The first observation of a new episode."""
        try:
            return self._text(self._ask(connection, "reset", {**self.settings, "seed": seed}))
        except (ServerError, TimeoutError) as error:
            connection.close()
            raise ConfigError(f"environment.url={self.url}: {str(error) or 'no answer to reset'}") from None

    def _ask(self, connection: Any, kind: str, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """The data of the answer. Raises ServerError for an error and a closed connection, TimeoutError."""
        try:
            connection.send(json.dumps({"type": kind, "data": data}))
            answer = json.loads(connection.recv(timeout=self.timeout))
        except (load("websockets").ConnectionClosed, json.JSONDecodeError) as error:
            raise ServerError("SESSION_ERROR", f"the session ended: {error}") from None
        found = answer.get("data") or {}
        if answer.get("type") == "error":
            raise ServerError(str(found.get("code")), str(found.get("message")))
        return found

    def _action(self, message: str) -> Mapping[str, Any] | None:
        """The action of a message; None if it is not one."""
        if self.action_field:
            return {self.action_field: message}
        try:
            found = json.loads(message)
        except json.JSONDecodeError:
            return None
        return found if isinstance(found, dict) else None

    def _text(self, found: Mapping[str, Any]) -> str:
        """An observation as text: a single field as it is, several as a JSON object."""
        observation = found.get("observation") or {}
        missing = [name for name in self.observation_fields if name not in observation]
        if missing:
            raise ConfigError(
                f"environment.observation_fields: the observation has no {missing[0]}; it has {', '.join(observation)}"
            )
        shown = {name: observation[name] for name in self.observation_fields or observation}
        values = [*shown.values()]
        return str(values[0]) if len(values) == 1 else json.dumps(shown, ensure_ascii=False)
