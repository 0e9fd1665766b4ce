"""A conversation, truncated to the model's context. Pure functions, no model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from postrain.data.conversation import Message, Messages

Encode = Callable[[Messages], Tensor]
"""Token ids of a conversation up to where the next answer begins, [L]."""


@dataclass(frozen=True)
class Conversation:
    """A conversation; each step gives a new one."""

    system: str = ""
    """What the model is told before everything else; empty for nothing."""
    turns: Messages = ()
    """User and assistant, in turn."""

    @property
    def messages(self) -> Messages:
        """All of it, as a template takes it."""
        return ((Message("system", self.system), *self.turns)) if self.system else self.turns

    def ask(self, text: str) -> Conversation:
        """With a further question."""
        return replace(self, turns=(*self.turns, Message("user", text)))

    def answer(self, text: str) -> Conversation:
        """With the answer to it."""
        return replace(self, turns=(*self.turns, Message("assistant", text)))

    def undo(self) -> Conversation:
        """Without the last question and its answer."""
        return replace(self, turns=self.turns[: (len(self.turns) - 1) // 2 * 2])


@dataclass(frozen=True)
class TruncatedConversation:
    """A conversation in the space there is for it."""

    ids: Tensor
    """[L]."""
    dropped: int
    """Exchanges from its beginning that had to go."""
    cut: bool
    """Whether even the last question lost its beginning."""


def truncate(conversation: Conversation, encode: Encode, room: int) -> TruncatedConversation:
    """The ids of at most `room` tokens: whole exchanges go first, the oldest before the others, then tokens."""
    kept = conversation
    while len(ids := encode(kept.messages)) > room and len(kept.turns) > 2:
        kept = replace(kept, turns=kept.turns[2:])
    gone = (len(conversation.turns) - len(kept.turns)) // 2
    return TruncatedConversation(ids[-room:], gone, len(ids) > room)


def room_for(context: int, answer: int) -> int:
    """Tokens a conversation may take, where an answer wants so many; it never takes more than half of the context."""
    return context - min(answer, context // 2)


def as_plain_text(messages: Messages) -> str:
    """A conversation with a model that only goes on with text: what both wrote, in one piece."""
    text = ""
    for message in messages:
        apart = not text or text[-1].isspace() or message.content[:1].isspace() or message.role == "assistant"
        text += message.content if apart else f" {message.content}"
    return text
