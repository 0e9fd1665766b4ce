"""The tables of byte-level BPE and SentencePiece."""

from __future__ import annotations

from tokenizers.pre_tokenizers import ByteLevel

from postrain.models.tokenizer_bytes import LETTERS, byte_level_bytes, sentencepiece_bytes


def test_letters_are_those_of_the_library_and_bytes_their_inverse() -> None:
    assert {*LETTERS.values()} == {*ByteLevel.alphabet()}
    assert (LETTERS[0x20], LETTERS[0xFF]) == ("Ġ", "ÿ")
    assert byte_level_bytes("".join(LETTERS.values())) == bytes(LETTERS)
    # é is the bytes C3 A9, and both are printable Latin-1.
    assert byte_level_bytes("ĠÃ©") == " é".encode()


def test_sentencepiece_writes_bytes_in_hexadecimal_and_a_space_as_a_bar() -> None:
    assert [sentencepiece_bytes(token) for token in ("▁a", "<0xE2>", "<0xE2>b")] == [b" a", b"\xe2", b"<0xE2>b"]
