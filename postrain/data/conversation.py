"""Conversations as messages, and transcripts of Human and Assistant turns in one text (the format of HH-RLHF).

The tools of a conversation are its first message, of the role DECLARATION, so they stay with every part of it. The
template renders them as the argument `tools`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

FIRST_TURN = "\n\nHuman:"
LAST_TURN = "\n\nAssistant:"
TURN = re.compile(rf"{FIRST_TURN}|{LAST_TURN}")
PLAIN_ROLES = ("system", "user", "assistant")
DECLARATION = "tools"
"""Role of the message that declares tools: its content is a JSON list of function schemas, as OpenAI wraps them."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """system, user, assistant, tool (the result of a call) or DECLARATION."""
    content: str
    in_loss: bool = True
    """False for an answer of weight 0, which is context only."""
    prefill: bool = False
    """True for an assistant message at the end of a prompt, which the model continues."""
    written: str | None = field(default=None, compare=False)
    """The turn as it is in a transcript, with its speaker; for models without a chat template."""
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Calls of an assistant message: `name`, `arguments` (an object) and `id` if the row has one."""
    reasoning: str = ""
    """Reasoning of an assistant message, given to the template as reasoning_content."""
    tool_call_id: str = ""
    """The call that a tool message answers."""
    name: str = ""
    """The function whose result a tool message holds."""

    @property
    def structured(self) -> bool:
        """True for an answer that only a chat template can write as text."""
        return bool(self.tool_calls or self.reasoning)

    @property
    def is_plain(self) -> bool:
        """True for a role and a content that is not blank, without calls, reasoning or prefill."""
        further = self.prefill or self.tool_calls or self.reasoning or self.tool_call_id or self.name
        return self.role in PLAIN_ROLES and not further and bool(self.content) and not self.content.isspace()

    @property
    def text(self) -> str:
        """The content with reasoning and calls, independent of the template; for comparisons of rows."""
        if not self.structured:
            return self.content
        calls = [json.dumps(call, ensure_ascii=False) for call in self.tool_calls]
        return "\n".join(part for part in (self.reasoning, self.content, *calls) if part)


Messages = tuple[Message, ...]
Answer = str | Message
"""The last message of a row: its content, or all of a structured message."""


def user(text: str) -> Messages:
    """A prompt of one user message."""
    return (Message("user", text),)


def as_answer(message: Message) -> Answer:
    """The content of an assistant message, or the message if it is structured."""
    return message if message.structured else message.content


def answer_text(answer: Answer) -> str:
    """An answer as text, independent of the template."""
    return answer if isinstance(answer, str) else answer.text


def as_message(answer: Answer) -> Message:
    """An answer as an assistant message."""
    return Message("assistant", answer) if isinstance(answer, str) else answer


def tools_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The declared function schemas; empty without a declaration."""
    return json.loads(messages[0].content) if messages and messages[0].role == DECLARATION else []


def without_tools(messages: Sequence[Message]) -> Messages:
    """The messages without the declaration of tools."""
    return tuple(message for message in messages if message.role != DECLARATION)


def with_prefill(prompt: Messages) -> Messages:
    """The prompt with its last message marked as a prefill if it is the assistant's."""
    *before, last = prompt
    return (*before, replace(last, prefill=last.role == "assistant"))


def plain_text(messages: Messages) -> str:
    """A prompt without a chat template: a message or a transcript unchanged, several messages joined by blank lines."""
    if len(messages) == 1:
        return messages[0].text if messages[0].written is None else messages[0].written
    written = [message.written for message in messages if message.written is not None]
    if written and len(written) == len(messages):
        return "".join(written)
    return "\n\n".join(message.text for message in messages)


def is_transcript(text: str) -> bool:
    """True for a text that starts with a Human turn."""
    return text.startswith(FIRST_TURN)


def transcript(text: str) -> Messages:
    """The turns of a transcript, each with its original text in `written`.

    An empty assistant turn at the end is not a turn: it stays in the text of the turn before. An assistant turn with
    text at the end is a prefill.
    """
    starts = [match.start() for match in TURN.finditer(text)]
    turns = [_turn(text[start:end]) for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    if len(turns) > 1 and turns[-1] == Message("assistant", ""):
        *turns, opening = turns
        turns[-1] = replace(turns[-1], written=f"{turns[-1].written}{opening.written}")
    return with_prefill(tuple(turns))


def _turn(text: str) -> Message:
    speaker, _, content = text.strip("\n").partition(":")
    return Message("user" if speaker == "Human" else "assistant", content.strip(), written=text)
