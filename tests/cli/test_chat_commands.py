"""What fits in front of an answer, and what a typed line asks for: pure functions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from postrain.cli.chat.commands import COMMANDS, Command, overview, parse, temperature
from postrain.cli.chat.conversation import Conversation, as_plain_text, room_for, truncate
from postrain.data.conversation import Message, Messages
from postrain.errors import ConfigError


def letters(messages: Messages) -> Tensor:
    """A token a letter."""
    return torch.tensor([ord(letter) for message in messages for letter in message.content])


TALK = Conversation(system="S").ask("aa").answer("bb").ask("cc").answer("dd").ask("ee")


@pytest.mark.parametrize(
    ("room", "kept", "forgotten", "cut"),
    [
        # S aa bb cc dd ee = 11 letters.
        (11, "Saabbccddee", 0, False),
        # Without the first exchange 7.
        (10, "Sccddee", 1, False),
        (7, "Sccddee", 1, False),
        (6, "See", 2, False),
        # The last question alone is too long: its end stays.
        (1, "e", 2, True),
    ],
)
def test_truncation_drops_the_oldest_exchanges_first(room, kept, forgotten, cut):
    found = truncate(TALK, letters, room)
    assert ("".join(map(chr, found.ids)), found.dropped, found.cut) == (kept, forgotten, cut)


def test_an_answer_never_takes_more_than_half_of_the_context():
    assert (room_for(256, 100), room_for(256, 1000)) == (156, 128)


def test_undoing_takes_a_question_and_its_answer_back():
    assert TALK.undo() == Conversation(system="S").ask("aa").answer("bb").ask("cc").answer("dd")
    assert TALK.undo().undo() == Conversation(system="S").ask("aa").answer("bb")
    assert Conversation().undo() == Conversation()


def test_text_that_goes_on_is_one_piece_with_blanks_between_words():
    said = [("user", "Anna ran."), ("assistant", " She fell"), ("assistant", "."), ("user", "Ben"), ("user", "\nNo.")]
    assert as_plain_text(tuple(Message(*each) for each in said)) == "Anna ran. She fell. Ben\nNo."


def test_line_is_parsed_as_message_or_command():
    assert parse("hello /undo") == "hello /undo"
    assert parse("//etc is a folder") == "/etc is a folder"
    assert parse("/system  Be kind. ") == Command("system", "Be kind.")
    assert parse("/undo ") == Command("undo")
    assert all(f"/{name}" in overview() for name in COMMANDS)
    assert temperature("0.5") == 0.5


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/resett", "did you mean /reset?"),
        ("/x", "there is /reset, /undo"),
        ("/undo 2", "expected no argument, got '2'"),
    ],
)
def test_a_wrong_command_is_one_line(line, said):
    with pytest.raises(ConfigError) as caught:
        parse(line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
