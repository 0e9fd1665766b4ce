"""Truncating a conversation and parsing a typed line: pure functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from postrain.cli.chat.commands import COMMANDS, Command, overview, parse, temperature
from postrain.cli.chat.conversation import Conversation, as_plain_text, token_limit, truncate
from postrain.data.conversation import Message, Messages
from postrain.errors import ConfigError


def letters(messages: Messages) -> Tensor:
    """One token per letter."""
    return torch.tensor([ord(letter) for message in messages for letter in message.content])


CONVERSATION = Conversation(system="S").ask("aa").answer("bb").ask("cc").answer("dd").ask("ee")


@pytest.mark.parametrize(
    ("limit", "kept", "dropped", "cut"),
    [
        # S aa bb cc dd ee = 11 letters.
        (11, "Saabbccddee", 0, False),
        # Without the first exchange 7.
        (10, "Sccddee", 1, False),
        (7, "Sccddee", 1, False),
        (6, "See", 2, False),
        # Only the end of the last question fits.
        (2, "Se", 2, True),
    ],
)
def test_truncation_drops_the_oldest_exchanges_first(limit, kept, dropped, cut):
    found = truncate(CONVERSATION, letters, limit)
    assert ("".join(map(chr, found.ids)), found.dropped, found.cut) == (kept, dropped, cut)


def test_system_message_beyond_the_context_is_one_line():
    with pytest.raises(ConfigError, match=r"leaves 2 tokens for the conversation, and the system message"):
        truncate(Conversation(system="SSS").ask("aa"), letters, 2)


def test_answer_gets_at_most_half_of_the_context():
    assert (token_limit(256, 100), token_limit(256, 1000)) == (156, 128)


def test_undo_removes_the_last_question_and_its_answer():
    assert CONVERSATION.undo() == Conversation(system="S").ask("aa").answer("bb").ask("cc").answer("dd")
    assert CONVERSATION.undo().undo() == Conversation(system="S").ask("aa").answer("bb")
    assert Conversation().undo() == Conversation()


def test_plain_text_joins_messages_with_blanks_between_words():
    turns = [("user", "Anna ran."), ("assistant", " She fell"), ("assistant", "."), ("user", "Ben"), ("user", "\nNo.")]
    assert as_plain_text(tuple(Message(*each) for each in turns)) == "Anna ran. She fell. Ben\nNo."


def test_line_is_parsed_as_message_or_command():
    assert parse("hello /undo") == "hello /undo"
    assert parse("//etc is a folder") == "/etc is a folder"
    assert parse("/system  Be kind. ") == Command("system", "Be kind.")
    assert parse("/undo ") == Command("undo")
    assert all(f"/{name}" in overview() for name in COMMANDS)
    assert temperature("0.5") == 0.5


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/resett", "did you mean /reset?"),
        ("/x", "available: /reset, /undo"),
        ("/undo 2", "expected no argument, got '2'"),
    ],
)
def test_wrong_command_is_one_line(line, expected):
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
