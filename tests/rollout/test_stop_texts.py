"""Stop texts are found when their last token comes, with as little decoding as that takes."""

from collections.abc import Sequence

import pytest

from postrain.rollout.decode.loop import StopTexts
from postrain.types import Stop

PIECES = ["ab", "c", "</", "ans", "wer", ">", " ", "é"]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[token] for token in ids)


def test_a_text_may_span_tokens_and_begin_inside_one():
    stop = StopTexts(Stop((), ("b</answer>",), decode))
    ids = [1, 0, 2, 3, 4, 5, 1]
    assert [stop.completed(ids[:n]) for n in range(1, 8)] == [False] * 5 + [True, False]


def test_a_text_inside_a_token_counts():
    assert StopTexts(Stop((), ("n",), decode)).completed([0, 3])


def test_any_of_several_texts():
    stop = StopTexts(Stop((), ("c</", "zzz"), decode))
    assert stop.completed([1, 2])
    assert not stop.completed([0, 2])


def test_only_what_could_complete_a_text_is_decoded():
    asked: list[list[int]] = []

    def noted(ids: Sequence[int]) -> str:
        asked.append(list(ids))
        return decode(ids)

    stop = StopTexts(Stop((), (">",), noted))
    for count in range(1, 50):
        assert not stop.completed([0, 1] * count)
    assert asked == [[1]]
    assert stop.completed([0, 1] * 50 + [5])
    # one character: four tokens at most, and one before them
    assert asked[1:] == [[5], [0, 1, 0, 1, 5][-5:]]


def test_bytes_of_a_character_complete_it():
    def joined(ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    euro = list("€".encode())
    stop = StopTexts(Stop((), ("€",), joined))
    assert [stop.completed([97, *euro[:n]]) for n in (1, 2, 3)] == [False, False, True]


def test_without_a_decoder_texts_cannot_be_found():
    with pytest.raises(TypeError, match="decode"):
        StopTexts(Stop((), ("x",)))
