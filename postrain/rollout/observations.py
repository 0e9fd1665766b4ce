"""Answers of an environment to the turns of a batch, checked and as tokens.

An environment may be a user's class: its errors and invalid answers are one-line ConfigErrors.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.conversation import Message
from postrain.environments.base import MessageEnvironment, Reply
from postrain.errors import ConfigError
from postrain.rewards.function import is_finite, preview
from postrain.rewards.user_code import UserCodeErrors, source_location
from postrain.rollout.environment import Environment, TextEnvironment
from postrain.types import Completion, Step

STEPS_IN_PARALLEL = 32
"""Threads that answer messages; most of them wait for tools."""


@dataclass(frozen=True)
class Turn:
    """A turn of the policy."""

    state: Any
    """The environment's state before it."""
    completion: Completion
    message: str
    """Its text without special tokens."""
    row: int
    """The row of the prompt's record, which the `random` template depends on."""


@dataclass(frozen=True)
class Observation:
    """The answer to a turn."""

    ids: Tensor
    """Its tokens, int64 [L]."""
    state: Any
    """The environment's state after the turn."""
    reward: float
    done: bool
    calls: int
    errors: int


def observe(environment: Environment, template: Template, turns: Sequence[Turn]) -> list[Observation | None]:
    """The answers to turns; None to those that do not call the environment, which end their episodes."""
    if isinstance(environment, MessageEnvironment):
        return _answer_messages(environment, template, turns)
    return [_continue_text(environment, template, turn) for turn in turns]


def blame(environment: Environment, method: str = "step") -> UserCodeErrors:
    """Converts errors of the environment's code."""
    file, _ = source_location(getattr(type(environment), method))
    return UserCodeErrors(f"environment {type(environment).__qualname__} raised", file)


def _continue_text(environment: TextEnvironment, template: Template, turn: Turn) -> Observation | None:
    """The answer to a turn that ended with a stop text of the environment."""
    text = template.decode_all(turn.completion.ids.tolist())
    stopped = turn.completion.finished and not _has_end_token(turn, template)
    if not stopped or not any(handing in text for handing in environment.stop):
        return None
    step = checked_step(environment, turn.state, text)
    ids = template.encode_continuation(step.observation)
    return Observation(ids, step.state, float(step.reward or 0.0), step.done, 1, step.error)


def checked_step(environment: TextEnvironment, state: Any, text: str) -> Step:
    """The answer to a turn. Raises ConfigError for an invalid one."""
    with blame(environment):
        step: Any = environment.step(state, text)
    if not isinstance(step, Step) or not isinstance(step.observation, str) or not _is_reward(step.reward):
        raise _invalid(environment, step, text, "a Step whose observation is text")
    return step


def _answer_messages(
    environment: MessageEnvironment, template: Template, turns: Sequence[Turn]
) -> list[Observation | None]:
    """The answers to messages that ended with an end token, computed in parallel."""

    def answer(turn: Turn) -> Reply | None:
        return checked_reply(environment, turn.state, turn.message) if _has_end_token(turn, template) else None

    with ThreadPoolExecutor(STEPS_IN_PARALLEL, "environment") as pool:
        replies = list(pool.map(answer, turns))
    return [reply and _observation(reply, template, turn) for reply, turn in zip(replies, turns, strict=True)]


def checked_reply(environment: MessageEnvironment, state: Any, message: str) -> Reply:
    """The answer to a message. Raises ConfigError for an invalid one."""
    with blame(environment):
        reply: Any = environment.step(state, message)
    well = isinstance(reply, Reply) and all(isinstance(answer, Message) for answer in reply.messages)
    if not well or not (reply.done or reply.messages) or not _is_reward(reply.reward):
        raise _invalid(environment, reply, message, "a Reply with messages or done=True")
    return reply


def _observation(reply: Reply, template: Template, turn: Turn) -> Observation:
    ids = torch.zeros(0, dtype=torch.int64) if reply.done else template.encode_replies(reply.messages, row=turn.row)
    # Some models end an answer with the token that opens the next turn (GLM-4: <|user|>).
    ids = ids[1:] if ids[:1].equal(turn.completion.ids[-1:].cpu()) else ids
    return Observation(ids, reply.state, float(reply.reward or 0.0), reply.done, reply.calls, reply.errors)


def _has_end_token(turn: Turn, template: Template) -> bool:
    ids = turn.completion.ids
    return turn.completion.finished and int(ids[-1]) in template.stop_ids


def _is_reward(value: Any) -> bool:
    return value is None or is_finite(value)


def _invalid(environment: Environment, answer: Any, turn: str, expected: str) -> ConfigError:
    return ConfigError(
        f"environment {type(environment).__qualname__}: returned {preview(answer)} for {turn[:60]!r}; expected "
        f"{expected}, and whose reward is a finite number or None"
    )
