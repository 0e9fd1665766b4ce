"""Stop texts: detected at their last token, with little decoding."""

from collections.abc import Sequence

import pytest

from postrain.rollout.decode.loop import StopTexts
from postrain.types import Stop

PIECES = ["ab", "c", "</", "ans", "wer", ">", " ", "é"]


def decode(ids: Sequence[int]) -> str:
    return "".join(PIECES[token] for token in ids)


def test_a_stop_text_may_span_tokens_and_begin_inside_one():
    stop = StopTexts(Stop((), ("b</answer>",), decode))
    ids = [1, 0, 2, 3, 4, 5, 1]
    assert [stop.completed(ids[:n]) for n in range(1, 8)] == [False] * 5 + [True, False]


def test_a_stop_text_inside_a_token_is_found():
    assert StopTexts(Stop((), ("n",), decode)).completed([0, 3])


def test_any_of_several_stop_texts_is_found():
    stop = StopTexts(Stop((), ("c</", "zzz"), decode))
    assert stop.completed([1, 2])
    assert not stop.completed([0, 2])


def test_only_tokens_that_may_complete_a_stop_text_are_decoded():
    decoded: list[list[int]] = []

    def recording(ids: Sequence[int]) -> str:
        decoded.append(list(ids))
        return decode(ids)

    stop = StopTexts(Stop((), (">",), recording))
    for count in range(1, 50):
        assert not stop.completed([0, 1] * count)
    assert decoded == [[1]]
    assert stop.completed([0, 1] * 50 + [5])
    # tail: at most four tokens for one character, and one before them
    assert decoded[1:] == [[5], [0, 1, 0, 1, 5][-5:]]


def test_a_stop_text_may_end_with_a_byte_of_a_character():
    def joined(ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    euro = list("€".encode())
    stop = StopTexts(Stop((), ("€",), joined))
    assert [stop.completed([97, *euro[:n]]) for n in (1, 2, 3)] == [False, False, True]


def test_stop_texts_without_a_decoder_are_refused():
    with pytest.raises(TypeError, match="decode"):
        StopTexts(Stop((), ("x",)))
