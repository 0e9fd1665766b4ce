"""Alignment of two tokenizers: spans, outcomes, and equality with the exact divergence for equal vocabularies."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models

import postrain as pt
from postrain import losses
from postrain.errors import ConfigError
from postrain.models.reference import Reference
from postrain.models.scoring import score_with_reference
from postrain.models.token_alignment import Side, Vocabularies, align, score_aligned, span_outcomes, token_bytes
from postrain.types import Rows
from tests.methods.builders import float64_model, rows
from tests.tiny import VOCABULARY

LETTERS = [bytes([ord("a") + i % 26, ord("a") + i // 26]) for i in range(VOCABULARY)]


def tokenizer(vocabulary: dict[str, int], decoder: Any) -> Any:
    """A tokenizer with these tokens and this decoder; its last token is special."""
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    if decoder is not None:
        backend.decoder = decoder
    special = [max(vocabulary.values())]
    return SimpleNamespace(
        backend_tokenizer=backend,
        get_vocab=lambda: vocabulary,
        all_special_ids=special,
        get_added_vocab=dict,
        added_tokens_decoder={},
    )


def test_spans_end_where_a_token_of_both_rows_ends():
    # a|bc|d and ab|c||d: the texts agree after abc and abcd; the empty token belongs to the span before.
    assert align([b"a", b"bc", b"d"], [b"ab", b"c", b"", b"d"]).tolist() == [[0, 2, 0, 3], [2, 1, 3, 1]]
    # From the first different byte on, nothing is aligned.
    assert align([b"a", b"b", b"c"], [b"a", b"x", b"c"]).tolist() == [[0, 1, 0, 1]]
    # One letter of two bytes, split by one tokenizer only.
    assert align(["é".encode()], ["é".encode()[:1], "é".encode()[1:]]).tolist() == [[0, 1, 0, 2]]
    assert align([b"a"], []).shape == (0, 4)


def test_end_tokens_are_a_span_only_after_the_same_text():
    vocabularies = Vocabularies(Side.of([], 5), Side.of([], 5), [b"", b"a", b"ab"], [b"", b"a", b"b"], 0, 0)
    assert vocabularies.spans([2, 0], [1, 2, 0]).tolist() == [[0, 1, 0, 2], [1, 1, 2, 1]]
    assert vocabularies.spans([0], [0]).tolist() == [[0, 1, 0, 1]]
    assert vocabularies.spans([1, 0], [2, 0]).tolist() == []


def test_an_end_token_without_a_role_in_the_tokenizer_is_one_outcome():
    # Both have the token <|stop|>, and end answers with it or with the token of the letter b.
    known = tokenizer({"a": 0, "b": 1, "<|stop|>": 2, "<|x|>": 3, "</s>": 4}, decoders.ByteLevel())
    known.get_added_vocab = lambda: {"<|stop|>": 2, "<|x|>": 3}
    known.added_tokens_decoder = {2: SimpleNamespace(special=True), 3: SimpleNamespace(special=False)}
    assert token_bytes(known) == [b"a", b"b", b"", b"<|x|>", b""]
    for end, text, shared in ((2, "ab", 4), (1, "a", 3)):
        vocabularies = Vocabularies.of(known, known, (5, 5), (end, end))
        assert vocabularies.text([0, 1, end]) == text
        assert vocabularies.shared == shared  # a, <|x|>, the end, and b where it does not end
        spans = (torch.tensor([0]), torch.tensor([vocabularies.shared]), torch.tensor([0.0]))
        logits = torch.tensor([[1.0, 2.0, 3.0, 0.0, 0.5]])
        assert float(vocabularies.student.table(logits, spans).sum()) == pytest.approx(1.0, abs=1e-6)
        assert vocabularies.spans([0, end], [0, end]).tolist() == [[0, 1, 0, 1], [1, 1, 1, 1]]


def test_tokens_of_byte_level_and_sentencepiece_vocabularies_are_the_same_bytes():
    found = token_bytes(tokenizer({"Ġtwo": 0, "Ã©": 1, "</s>": 2}, decoders.ByteLevel()))
    assert found == [b" two", "é".encode(), b""]
    pieces = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    assert token_bytes(tokenizer({"▁two": 0, "é": 1, "<0xC3>": 2, "</s>": 3}, pieces)) == [
        b" two",
        "é".encode(),
        b"\xc3",
        b"",
    ]
    with pytest.raises(ConfigError, match=r"cross_tokenizer: a tokenizer with the decoder WordPiece cannot be aligned"):
        token_bytes(tokenizer({"two": 0, "[SEP]": 1}, decoders.WordPiece()))


def test_outcomes_of_a_span_are_worked_numbers():
    """Student: a 0.4, b 0.3, ab 0.2, x 0.1; teacher: a 0.5, b 0.25, y 0.25. Shared: a, b. The span "ab" is the token
    ab of the student and a, b of the teacher, whose second token has the probability 0.6."""
    student, teacher = Side.of([0, 1], 4), Side.of([0, 1], 3)
    spans = torch.tensor([[0, 1, 0, 2]])
    outcome = span_outcomes(student.outcome_V[torch.tensor([2])], teacher.outcome_V[torch.tensor([0])], spans, 2)
    mine = student.table(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log(), (torch.tensor([2]), outcome, torch.zeros(1)))
    theirs = teacher.table(
        torch.tensor([[0.5, 0.25, 0.25]]).log(), (torch.tensor([0]), outcome, torch.tensor([0.6]).log())
    )
    # a, b, "ab", others. Of the teacher's a, 0.5 · 0.6 = 0.3 is "ab".
    assert mine[0].tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert theirs[0].tolist() == pytest.approx([0.2, 0.25, 0.3, 0.25])
    # A span that is a token of the teacher and of the shared vocabulary counts as this token.
    split = span_outcomes(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0, 2, 0, 1]]), 2)
    assert split.tolist() == [1]


@pytest.mark.parametrize("function", [losses.exact_kl, losses.forward_kl, losses.generalized_jsd])
def test_equal_vocabularies_give_the_exact_divergence_and_its_gradient(function):
    model, other = float64_model(), float64_model(1)
    both = rows([torch.tensor([5, 6]), torch.tensor([8])], [torch.tensor([2, 7, 0]), torch.tensor([3, 4])])
    side = Side.of(range(VOCABULARY), VOCABULARY)
    vocabularies = Vocabularies(side, side, LETTERS, LETTERS, 0, 0)
    spans = [
        vocabularies.spans(ids[mask].tolist(), ids[mask].tolist())
        for ids, mask in zip(both.ids, both.supervised, strict=True)
    ]
    reference = Reference(model, other)
    options: Any = {"temperature": 0.7, "divergence": function}
    found = score_aligned(model, reference, both, both, spans, vocabularies, **options)
    exact = score_with_reference(model, reference, both, **options)
    assert torch.allclose(found.divergence_BT, exact.kl_BT, rtol=1e-5, atol=1e-7)
    assert found.single_BT.tolist() == found.mask_BT.tolist() == [[True] * 3, [True, True, False]]
    parameters = list(model.parameters())
    gradients = (torch.autograd.grad(each.sum(), parameters) for each in (found.divergence_BT, exact.kl_BT))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_span_of_several_tokens_compares_products_of_probabilities():
    """The student writes tokens 2 and 3, the teacher token 4, and no token is shared: two outcomes, the span and all
    others, so the KL is that of two Bernoulli distributions."""
    model, other = float64_model(), float64_model(1)
    mine = rows([torch.tensor([5])], [torch.tensor([2, 3])])
    theirs = rows([torch.tensor([6, 7])], [torch.tensor([4])])
    side = Side.of([], VOCABULARY)
    found = score_aligned(
        model,
        Reference(model, other),
        mine,
        theirs,
        [torch.tensor([[0, 2, 0, 1]])],
        Vocabularies(side, side, LETTERS, LETTERS, 0, 0),
        temperature=1.0,
        divergence=losses.exact_kl,
    )
    student = model(torch.tensor([[5, 2, 3]])).logits[0].softmax(-1)
    p = float(student[0, 2] * student[1, 3])
    q = float(other(torch.tensor([[6, 7]])).logits[0, -1].softmax(-1)[4])
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert found.divergence_BT.tolist()[0] == pytest.approx([expected, 0])
    assert found.aligned_BT.tolist() == [[True, False]]
    assert float(found.shared_BT[0, 0]) == pytest.approx(0, abs=1e-9)


def test_row_without_a_span_has_no_loss():
    model = float64_model()
    both = Rows((torch.tensor([5, 2]),), (torch.tensor([False, True]),), (0,))
    side = Side.of([], VOCABULARY)
    vocabularies = Vocabularies(side, side, LETTERS, LETTERS, 0, 0)
    none = [torch.empty(0, 4, dtype=torch.long)]
    options: Any = {"temperature": 1.0, "divergence": losses.exact_kl}
    found = score_aligned(model, Reference(model, float64_model(1)), both, both, none, vocabularies, **options)
    assert float(found.divergence_BT.sum()) == 0


def test_vocabularies_of_one_tokenizer_share_all_tokens():
    _, nano = pt.load_model("nano")
    end = nano.eos_token_id
    found = Vocabularies.of(nano, nano, (1024, 1024), (end, end))
    ids = nano("Tom has 3 balls, é!").input_ids
    assert found.text(ids) == "Tom has 3 balls, é!"
    assert found.spans([*ids, end], [*ids, end]).tolist() == [[i, 1, i, 1] for i in range(len(ids) + 1)]
