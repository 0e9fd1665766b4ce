"""A conversation, truncated to the model's context. Pure functions, no model."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from postrain.data.conversation import Message, Messages
from postrain.errors import ConfigError
from postrain.rewards.tool_calls import find_calls

Encode = Callable[[Messages], Tensor]
"""Token ids of a conversation up to the beginning of the next answer, [L]."""


@dataclass(frozen=True)
class Conversation:
    """An immutable conversation; each method returns a new one."""

    system: str = ""
    """The system message; empty for none."""
    turns: Messages = ()
    """Messages of user and assistant in turn; after calls, their results are in place of the user message."""
    tools: Messages = ()
    """The message that declares the tools; () for none."""

    @property
    def messages(self) -> Messages:
        """All messages, including the declaration of tools and the system message."""
        return (*self.tools, *((Message("system", self.system),) if self.system else ()), *self.turns)

    @property
    def open_calls(self) -> int:
        """The number of calls in the last answer that have no result yet."""
        answer = next((at for at, turn in reversed([*enumerate(self.turns)]) if turn.role == "assistant"), None)
        if not self.tools or answer is None:
            return 0
        return len(find_calls(self.turns[answer].content).calls) - len(self.turns[answer + 1 :])

    def ask(self, text: str) -> Conversation:
        """The conversation with a further user message."""
        return replace(self, turns=(*self.turns, Message("user", text)))

    def result(self, text: str) -> Conversation:
        """The conversation with the result of a call. Raises ConfigError if no call waits for one."""
        if self.open_calls < 1:
            reason = "no call waits for a result" if self.tools else "there are no tools; start the chat with --tools"
            raise ConfigError(f"/result: {reason}")
        return replace(self, turns=(*self.turns, Message("tool", text)))

    def answer(self, text: str) -> Conversation:
        """The conversation with a further assistant message."""
        return replace(self, turns=(*self.turns, Message("assistant", text)))

    def undo(self) -> Conversation:
        """The conversation without the last answer and the messages that it answers."""
        turns = list(self.turns)
        while turns and turns[-1].role == "assistant":
            turns.pop()
        while turns and turns[-1].role != "assistant":
            turns.pop()
        return replace(self, turns=tuple(turns))

    def without_oldest(self) -> Conversation | None:
        """The conversation from its second user message on; None without a second one."""
        second = next((at for at, turn in enumerate(self.turns) if at and turn.role == "user"), None)
        return None if second is None else replace(self, turns=self.turns[second:])


@dataclass(frozen=True)
class TruncatedConversation:
    """A conversation truncated to the model's context."""

    ids: Tensor
    """Token ids, int64 [L]."""
    dropped: int
    """The number of dropped exchanges, the oldest ones."""
    cut: bool
    """Whether the beginning of the last user message was dropped too."""


def truncate(conversation: Conversation, encode: Encode, limit: int) -> TruncatedConversation:
    """Truncates to at most `limit` tokens: drops the oldest whole exchanges, then the beginning of the last message.

    Raises ConfigError if the system message and the declared tools alone exceed the limit.
    """
    kept, dropped = conversation, 0
    while len(ids := encode(kept.messages)) > limit and (shorter := kept.without_oldest()) is not None:
        kept, dropped = shorter, dropped + 1
    if len(ids) <= limit:
        return TruncatedConversation(ids, dropped, cut=False)
    last = kept.turns[-1].content

    def ending(count: int) -> Tensor:
        turns = (*kept.turns[:-1], replace(kept.turns[-1], content=last[len(last) - count :]))
        return encode(replace(kept, turns=turns).messages)

    if len(ending(0)) >= limit:
        raise ConfigError(
            f"the context leaves {limit} tokens for the conversation, and the system message (--system) with the tools "
            "is longer; shorten it"
        )
    count = bisect.bisect_right(range(len(last)), limit, key=lambda count: len(ending(count))) - 1
    return TruncatedConversation(ending(count), dropped, cut=True)


def token_limit(context: int, answer: int) -> int:
    """The token limit of a conversation, given that of its answer, which gets at most half of the context."""
    return context - min(answer, context // 2)


def as_plain_text(messages: Messages) -> str:
    """A conversation as one text, for a model that only continues text."""
    text = ""
    for message in messages:
        separated = not text or text[-1].isspace() or message.content[:1].isspace() or message.role == "assistant"
        text += message.content if separated else f" {message.content}"
    return text
