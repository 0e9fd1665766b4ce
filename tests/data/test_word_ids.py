"""Ids looked up by word equal those of the tokenizer, for every known splitter and any text."""

from __future__ import annotations

import random

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from postrain.data import tokenizing, word_ids
from postrain.data.tokenizing import PieceTokenizer
from postrain.models.tokenizer_bytes import LLAMA_3, QWEN_2
from tests.data.helpers import CORPUS, byte_tokenizer

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
SPLITTERS = {
    "gpt 2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    **{
        name: pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(regex), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        for name, regex in (("llama 3", LLAMA_3), ("qwen 2", QWEN_2))
    },
}
ADDED = ["<|end|>", "<|end|>\n", "  x", "'s"]
PARTS = [
    *map(chr, range(128)),
    *ADDED,
    " ",
    "  ",
    "\r\n",
    "\n\n",
    "don't",
    "I'LL",
    "12",
    "3456",
    "the",
    " The",
    "answer",
    "_",
    *"üß’…\xa0\x85\u2028\u3000\u200b\xad²½٣Ⅳ字か한ж\u0301é",
    *("e\u0301", "🙂", "👩‍🚀", "\U00020000", "\u180e", "\u017f", "'\u017f", "\u212a"),
]


def tokenizer(splitter: pre_tokenizers.PreTokenizer, **options: bool) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = splitter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = [*CORPUS, "don't 12  \n\n 3456 we'll", "  \r\n the  the"] * 3
    inner.train_from_iterator(text, trainers.BpeTrainer(vocab_size=360, initial_alphabet=alphabet))
    inner.add_tokens([AddedToken(text, normalized=False, **options) for text in ADDED])
    return inner


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
@pytest.mark.parametrize("name", SPLITTERS)
def test_ids_by_word_equal_the_ids_of_the_tokenizer(name, normalizer):
    inner = tokenizer(SPLITTERS[name])
    inner.normalizer = normalizer
    words = word_ids.word_ids(inner)
    assert words is not None
    draw = random.Random(name)
    texts = ["".join(draw.choices(PARTS, k=draw.randrange(12))) for _ in range(4000)]
    assert [words.of(text) for text in texts] == [e.ids for e in inner.encode_batch_fast(texts)]


@pytest.mark.parametrize("name", SPLITTERS)
def test_characters_of_known_classes_are_cut_as_by_the_tokenizer(name):
    words = word_ids.word_ids(tokenizer(SPLITTERS[name]))
    assert words is not None
    draw = random.Random(name)
    pattern, all_known = words.unicode
    known = [*filter(all_known.fullmatch, map(chr, range(0x20000)))]
    assert len(known) > 60_000
    before = ["a", "1", " ", "  ", "-", "\n", "'", "'s", ""]
    for _ in range(40):
        text = "".join(draw.choice(before) + draw.choice(known) for _ in range(300))
        pieces = SPLITTERS[name].pre_tokenize_str(text)
        assert pattern.findall(text) == [text[start:end] for _, (start, end) in pieces]


def test_forgotten_words_are_looked_up_again(monkeypatch):
    monkeypatch.setattr(word_ids, "MAX_WORDS", 3)
    monkeypatch.setattr(word_ids, "PARTS", 6)
    inner = tokenizer(BYTES)
    words = word_ids.word_ids(inner)
    assert words is not None
    for text in CORPUS * 2:
        assert words.of(text) == inner.encode(text).ids
    assert len(words) < 20


@pytest.mark.parametrize("other", ["lowercase", "metaspace", "regex", "lstrip", "normalized", "dropout"])
def test_other_tokenizers_have_no_ids_by_word(other):
    inner = tokenizer(BYTES, lstrip=other == "lstrip")
    if other == "lowercase":
        inner.normalizer = normalizers.Lowercase()
    if other == "metaspace":
        inner.pre_tokenizer = pre_tokenizers.Metaspace()
    if other == "regex":
        inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\w+"), "isolated"), BYTES])
    if other == "normalized":
        inner.add_tokens([AddedToken("<x>")])
    if other == "dropout":
        inner.model.dropout = 0.1
    assert word_ids.word_ids(inner) is None


def test_a_tokenizer_of_pieces_looks_words_up_after_many_texts(monkeypatch):
    monkeypatch.setattr(tokenizing, "MANY", 4)
    pieces = [(f"{text} {n} é" if n % 3 == 0 else f"{text}  {n}", n % 2 == 0) for n, text in enumerate(CORPUS * 3)]
    one, other = PieceTokenizer(byte_tokenizer()), PieceTokenizer(byte_tokenizer())
    found = [one(pieces[at : at + 3]) for at in range(0, len(pieces), 3)]
    assert one._words is not None
    assert [ids for part in found for ids in part] == [other([piece])[0] for piece in pieces]
    monkeypatch.setattr(word_ids.WordIds, "of", lambda *_: [])  # ids that differ switch the words off
    wrong = PieceTokenizer(byte_tokenizer())
    assert [wrong(pieces[at : at + 3]) for at in range(0, len(pieces), 3)] == found
