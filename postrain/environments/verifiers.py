"""Environments of verifiers, unchanged: its own rollout asks this adapter, instead of a server, for the messages.

`environment.run_rollout` of verifiers calls a client for every message of the model and scores the rollout with its
rubric. The client here hands the request over: the messages that are new in it are the reply to the policy, and the
policy's next message is the response. For verifiers 0.1.14 to 0.2; from 0.3 on its environments run an agent against a
server.
"""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any

from postrain.config.extras import load
from postrain.config.schema import Confirm
from postrain.data.conversation import Message, Messages
from postrain.environments.base import MessageEnvironment, Reply
from postrain.errors import ConfigError, one_line
from postrain.rewards.tool_calls import find_calls
from postrain.types import Positive
from postrain.world.items import Split


@dataclass(frozen=True)
class Running:
    """The state of an episode: a rollout of verifiers that waits for the policy."""

    rollout: Future[Any]
    client: Any
    seen: int
    """Messages of the conversation that the policy has seen or written."""
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class VerifiersEnvironment(MessageEnvironment):
    """An environment of verifiers: `load_environment(id)`. Its rubric gives the reward, its metrics are logged."""

    id: Annotated[str, Confirm("imports this environment")]
    """Name of an installed environment."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its load_environment."""
    timeout: Positive = 60.0
    """Time limit of a reply in seconds; the run stops at it."""

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Running:
        environment = self._loaded()
        client = policy_class()()
        rollout = asyncio.run_coroutine_threadsafe(
            environment.run_rollout(json.loads(columns["verifiers"]), client, "policy", {}), event_loop()
        )
        rollout.add_done_callback(lambda _: client.requests.put(None))
        running = Running(rollout, client, 0)
        request = self._next_request(running)
        if request is None:
            error = None if rollout.cancelled() else rollout.exception()
            why = "it ended before the first message of the policy" if error is None else one_line(error, limit=None)
            raise ConfigError(f"environment.id={self.id}: {why}")
        return Running(rollout, client, len(request))

    def step(self, state: Running, message: str) -> Reply:
        event_loop().call_soon_threadsafe(state.client.answer.set_result, message)
        request = self._next_request(state)
        if request is not None:
            new = Running(state.rollout, state.client, len(request))
            return Reply(new, _as_messages(request[state.seen + 1 :]), calls=len(find_calls(message).calls))
        output = state.rollout.result()
        metrics = {name: float(value) for name, value in (output.get("metrics") or {}).items()}
        failed = output.get("error") is not None
        return Reply(
            Running(state.rollout, state.client, 0, metrics), reward=output.get("reward"), done=True, errors=failed
        )

    def metrics(self, state: Running) -> Mapping[str, float]:
        """The metrics of the rubric. Ends a rollout that the policy left."""
        state.rollout.cancel()
        return state.metrics

    def make_rows(self, split: Split, count: int, seed: int) -> list[dict[str, Any]]:
        environment = self._loaded()
        data = environment.get_dataset() if split == "train" else environment.get_eval_dataset()
        tools = [
            {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
            for tool in environment.tool_defs or ()
        ]
        rows = [dict(data[at]) for at in range(min(count, len(data)))]
        return [
            {
                "prompt": row["prompt"],
                **({"tools": tools} if tools else {}),
                "verifiers": json.dumps(row, default=str),
            }
            for row in rows
        ]

    def _loaded(self) -> Any:
        return load_environment(self.id, json.dumps(dict(self.arguments), sort_keys=True))

    def _next_request(self, state: Running) -> Sequence[Any] | None:
        """The conversation for which the rollout wants the next message; None if the rollout has ended."""
        try:
            return state.client.requests.get(timeout=self.timeout)
        except queue.Empty:
            state.rollout.cancel()
            raise ConfigError(
                f"environment.id={self.id}: no reply within {self.timeout:g} seconds; raise environment.timeout"
            ) from None


@cache
def load_environment(name: str, arguments: str) -> Any:
    """The environment of verifiers; `arguments` are JSON. Raises ConfigError if there is none."""
    verifiers = load("verifiers")
    if not hasattr(verifiers, "load_environment"):
        raise ConfigError(
            'environment: this verifiers has no load_environment; run pip install "verifiers>=0.1.14,<0.3"'
        )
    try:
        return verifiers.load_environment(name, **json.loads(arguments))
    except (ImportError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"environment.id={name}: {one_line(error, limit=None)}") from None


@cache
def event_loop() -> asyncio.AbstractEventLoop:
    """The loop in which rollouts run, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="verifiers", daemon=True).start()
    return loop


@cache
def policy_class() -> Any:
    """A client of verifiers whose responses are the messages of the policy."""
    verifiers = load("verifiers")
    types = verifiers.types

    class Policy(verifiers.Client):
        def __init__(self) -> None:
            super().__init__(None)
            self.requests: queue.Queue[Any] = queue.Queue()

        async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any) -> Any:
            self.answer = asyncio.get_running_loop().create_future()
            self.requests.put(prompt)
            text = await self.answer
            calls = [
                types.ToolCall(id=f"call_{at}", name=call["name"], arguments=json.dumps(call["arguments"]))
                for at, call in enumerate(find_calls(text).calls if tools else ())
            ]
            message = types.ResponseMessage(
                content=text, tool_calls=calls or None, finish_reason="stop", is_truncated=False
            )
            return types.Response(id="policy", created=0, model=model, message=message)

        def setup_client(self, config: Any) -> None: ...
        async def to_native_tool(self, tool: Any) -> Any: ...
        async def to_native_prompt(self, messages: Any) -> Any: ...
        async def get_native_response(self, *arguments: Any, **settings: Any) -> Any: ...
        async def raise_from_native_response(self, response: Any) -> None: ...
        async def from_native_response(self, response: Any) -> Any: ...
        async def close(self) -> None: ...

    return Policy


def _as_messages(request: Sequence[Any]) -> Messages:
    """Messages of verifiers. Content that is not text is not supported."""
    found = []
    for message in request:
        content = message.content
        if not isinstance(content, str):
            content = "\n".join(getattr(part, "text", "") for part in content or ())
        role = message.role if message.role in ("tool", "system") else "user"
        found.append(Message(role, content, tool_call_id=getattr(message, "tool_call_id", None) or ""))
    return tuple(found)
