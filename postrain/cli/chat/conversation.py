"""A conversation, truncated to the model's context. Pure functions, no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from postrain.data.conversation import Message, Messages

Encode = Callable[[Messages], Tensor]
"""Token ids of a conversation up to the beginning of the next answer, [L]."""


@dataclass(frozen=True)
class Conversation:
    """An immutable conversation; each method returns a new one."""

    system: str = ""
    """The system message; empty for none."""
    turns: Messages = ()
    """Messages of user and assistant, alternating."""

    @property
    def messages(self) -> Messages:
        """All messages, including the system message."""
        return ((Message("system", self.system), *self.turns)) if self.system else self.turns

    def ask(self, text: str) -> Conversation:
        """The conversation with a further user message."""
        return replace(self, turns=(*self.turns, Message("user", text)))

    def answer(self, text: str) -> Conversation:
        """The conversation with a further assistant message."""
        return replace(self, turns=(*self.turns, Message("assistant", text)))

    def undo(self) -> Conversation:
        """The conversation without the last user message and its answer."""
        return replace(self, turns=self.turns[: (len(self.turns) - 1) // 2 * 2])


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
    """Truncates to at most `limit` tokens: drops the oldest whole exchanges first, then the first tokens."""
    kept = conversation
    while len(ids := encode(kept.messages)) > limit and len(kept.turns) > 2:
        kept = replace(kept, turns=kept.turns[2:])
    dropped = (len(conversation.turns) - len(kept.turns)) // 2
    return TruncatedConversation(ids[-limit:], dropped, len(ids) > limit)


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
