"""Divergence from a reference with another tokenizer, by spans of tokens with the same text.

A completion is one text and two token rows. They are cut at the byte offsets where a token of both rows ends: the
spans. At the beginning of a span both models have read the same text, and their next-token distributions are compared
over a common partition of outcomes:

    one outcome per token that both vocabularies hold (equal bytes; the end token of one is that of the other),
    the text of the span, if it is not such a token, with the product of the probabilities of its tokens,
    and all other tokens together.

The probability of a span is taken from the outcome of its first token, so the outcomes are disjoint and sum to 1. With
equal vocabularies this is the exact divergence. TRL's GOLD and NeMo-RL also align by text; they compare sorted
probabilities (ULD, Boizard et al. 2024) or projected ones outside the shared vocabulary, here it is one outcome.

What is lost: tokens inside a span and after the first difference of the two texts have no distribution of their own to
compare, and a token that only one vocabulary holds counts as "other" wherever the completion does not contain its text.

Axes: B rows, T supervised tokens of a row, N of all rows, K spans of all rows, V vocabulary, S shared tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.losses.supervised import token_logps
from postrain.models.parts import logits_of, model_width, upcast
from postrain.models.reference import Reference
from postrain.models.scoring import SupervisedStates, in_chunks, supervised_states
from postrain.models.tokenizer_bytes import byte_level_bytes, sentencepiece_bytes
from postrain.types import Rows

# Rounding of float32 sums over a vocabulary; an outcome below it has no meaningful log-probability.
SMALLEST = 1e-9


@dataclass(frozen=True)
class Side:
    """The tokens of one model as outcomes: S shared tokens, the span (S), all others (S + 1)."""

    shared_S: Tensor
    """Ids of the shared tokens, in the same order on both sides."""
    others: Tensor
    """Ids of all other tokens."""
    outcome_V: Tensor
    """The outcome of each token."""

    @classmethod
    def of(cls, shared: Sequence[int], width: int) -> Side:
        """The outcomes of a model with `width` logits."""
        shared_S = torch.tensor(shared, dtype=torch.long)
        outcome_V = torch.full((width,), len(shared) + 1)
        outcome_V[shared_S] = torch.arange(len(shared))
        return cls(shared_S, (outcome_V == len(shared) + 1).nonzero().squeeze(1), outcome_V)

    def to(self, device: torch.device) -> Side:
        return Side(self.shared_S.to(device), self.others.to(device), self.outcome_V.to(device))

    def table(self, logits_KV: Tensor, spans: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Probabilities of the outcomes, [K, S + 2]. `spans`: first token, outcome of the span, log-probability of the
        tokens of the span after the first, [K] each."""
        first_K, outcome_K, later_K = spans
        probs_KV = logits_KV.softmax(-1)
        others_K1 = probs_KV.index_select(1, self.others).sum(1, keepdim=True)
        table = torch.cat([probs_KV.index_select(1, self.shared_S), torch.zeros_like(others_K1), others_K1], 1)
        span_K1 = probs_KV.gather(1, first_K[:, None]) * later_K.exp()[:, None]
        moved = table.scatter_add(1, self.outcome_V[first_K][:, None], -span_K1)
        return moved.scatter_add(1, outcome_K[:, None], span_K1).clamp(min=SMALLEST)


@dataclass(frozen=True)
class Vocabularies:
    """Two vocabularies and the tokens that they share."""

    student: Side
    teacher: Side
    student_bytes: Sequence[bytes]
    teacher_bytes: Sequence[bytes]
    student_end: int
    teacher_end: int

    @classmethod
    def of(cls, student: Any, teacher: Any, widths: tuple[int, int], ends: tuple[int, int]) -> Vocabularies:
        """Of two tokenizers, the widths of their models' logits and their end tokens."""
        # Models may have logits beyond the tokenizer's ids, which can be sampled too.
        mine, theirs = (
            [*found, *[b""] * (width - len(found))]
            for found, width in zip(map(token_bytes, (student, teacher)), widths, strict=True)
        )
        # An end token may be an ordinary token of its vocabulary; it has an outcome of its own.
        for table, end in zip((mine, theirs), ends, strict=True):
            table[end] = b""
        # The first id of equal tokens; special tokens have no text.
        ids = [{text: len(table) - 1 - i for i, text in enumerate(reversed(table)) if text} for table in (mine, theirs)]
        pairs = [(ids[0][text], ids[1][text]) for text in ids[0] if text in ids[1]] + [ends]
        student_side, teacher_side = (Side.of([pair[i] for pair in pairs], widths[i]) for i in (0, 1))
        return cls(student_side, teacher_side, mine, theirs, student_end=ends[0], teacher_end=ends[1])

    @property
    def shared(self) -> int:
        """Number of tokens that both vocabularies hold."""
        return len(self.student.shared_S)

    def describe(self) -> str:
        """One line for the console."""
        sizes = [1 + sum(map(bool, table)) for table in (self.student_bytes, self.teacher_bytes)]
        shares = [self.shared / size for size in sizes]
        return (
            f"tokens: {self.shared} in both vocabularies, {shares[0]:.0%} of the student's {sizes[0]} and "
            f"{shares[1]:.0%} of the teacher's {sizes[1]}"
        )

    def text(self, ids: Sequence[int]) -> str:
        """The text of the student's tokens."""
        return b"".join(self.student_bytes[i] for i in ids).decode(errors="replace")

    def spans(self, student: Sequence[int], teacher: Sequence[int]) -> Tensor:
        """The spans of a completion; see `align`. An end token matches an end token only."""
        ended = student[-1:] == [self.student_end], teacher[-1:] == [self.teacher_end]
        cut = [list(ids)[: len(ids) - end] for ids, end in zip((student, teacher), ended, strict=True)]
        found = align([self.student_bytes[i] for i in cut[0]], [self.teacher_bytes[i] for i in cut[1]])
        complete = len(found) and found[-1, :2].sum() == len(cut[0]) and found[-1, 2:].sum() == len(cut[1])
        if all(ended) and (complete or not any(map(len, cut))):
            found = torch.cat([found, torch.tensor([[len(cut[0]), 1, len(cut[1]), 1]])])
        return found


def token_bytes(tokenizer: Any) -> list[bytes]:
    """The text of each token as bytes, empty for special tokens and ids without a token. Raises ConfigError for
    tokenizers other than byte-level BPE and SentencePiece."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    kinds = {step["type"] for step in [decoder, *decoder.get("decoders", ())] if "type" in step}
    vocabulary = tokenizer.get_vocab()
    # Chat tokens may be special without a role in the tokenizer's settings.
    named = (number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    special = {*tokenizer.all_special_ids, *named}
    added = tokenizer.get_added_vocab()
    if "ByteLevel" in kinds:
        convert = byte_level_bytes
    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
        convert = sentencepiece_bytes
    else:
        raise ConfigError(
            f"method.cross_tokenizer: a tokenizer with the decoder {', '.join(sorted(kinds)) or 'none'} cannot be "
            "aligned; expected byte-level BPE or SentencePiece"
        )
    found = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if number not in special:
            found[number] = token.encode() if token in added else convert(token)
    return found


def align(student: Sequence[bytes], teacher: Sequence[bytes]) -> Tensor:
    """The spans of two token rows of one text: first token and number of tokens of the student, then of the teacher,
    int64 [K, 4]. Spans end where a token of both ends; they cover the rows up to their first different byte."""
    texts = b"".join(student), b"".join(teacher)
    same = next((i for i, (a, b) in enumerate(zip(*texts, strict=False)) if a != b), min(map(len, texts)))
    # The last token that ends at an offset, so that tokens without bytes belong to the span before.
    mine, theirs = (dict(zip(accumulate(map(len, row)), range(len(row)), strict=True)) for row in (student, teacher))
    found, before = [], (0, 0)
    for offset, last in mine.items():
        if offset in theirs and 0 < offset <= same:
            after = last + 1, theirs[offset] + 1
            found.append([before[0], after[0] - before[0], before[1], after[1] - before[1]])
            before = after
    return torch.tensor(found, dtype=torch.long).view(-1, 4)


@dataclass(frozen=True)
class AlignedScores:
    """Divergences of spans, each at the first token of its span."""

    divergence_BT: Tensor
    """0 inside spans and where nothing is aligned."""
    mask_BT: Tensor
    """True at real supervised tokens of the student."""
    aligned_BT: Tensor
    """True at the first token of a span."""
    single_BT: Tensor
    """True at spans of one token of each side."""
    shared_BT: Tensor
    """The reference's probability of shared tokens at the beginning of each span; 0 elsewhere."""


def score_aligned(
    model: nn.Module,
    reference: Reference,
    rows: Rows,
    reference_rows: Rows,
    spans: Sequence[Tensor],
    vocabularies: Vocabularies,
    *,
    temperature: float,
    divergence: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> AlignedScores:
    """Divergence of model and reference at the spans of each row, [K, 4]; differentiable in `model`."""
    mine = supervised_states(model, rows)
    device = mine.states_ND.device
    student, teacher = vocabularies.student.to(device), vocabularies.teacher.to(device)
    with torch.no_grad(), reference.scoring() as frozen:
        theirs = supervised_states(frozen, reference_rows)
        spans_K4 = _flat_spans(spans, mine, theirs)
        first_K, ref_first_K = spans_K4[:, 0], spans_K4[:, 2]
        ref_later_K = later_logps(frozen, theirs, spans_K4[:, 2:], temperature)
    later_K = later_logps(model, mine, spans_K4[:, :2], temperature)
    tokens_K, ref_tokens_K = mine.targets_N[first_K], theirs.targets_N[ref_first_K]
    outcome_K = span_outcomes(
        student.outcome_V[tokens_K], teacher.outcome_V[ref_tokens_K], spans_K4, vocabularies.shared
    )

    def chunk(states, ref_states, tokens, ref_tokens, outcomes, later, ref_later) -> tuple[Tensor, ...]:
        probs_KO = student.table(upcast(logits_of(model, states)) / temperature, (tokens, outcomes, later))
        with torch.no_grad(), reference.scoring() as frozen:
            ref_logits_KV = upcast(logits_of(frozen, ref_states)) / temperature
            ref_probs_KO = teacher.table(ref_logits_KV, (ref_tokens, outcomes, ref_later))
            shared_K = 1 - ref_logits_KV.softmax(-1).index_select(1, teacher.others).sum(1)
        return divergence(probs_KO.log(), ref_probs_KO.log(), probs_KO), shared_K

    flat = (mine.states_ND[first_K], theirs.states_ND[ref_first_K], tokens_K, ref_tokens_K, outcome_K, later_K)
    widest = max(model_width(model), len(teacher.outcome_V))
    divergence_K, shared_K = in_chunks(chunk, *flat, ref_later_K, vocabulary=widest)

    def placed(values_K: Tensor) -> Tensor:
        """[K] → [B, T] at the first token of each span."""
        return mine.unflatten(values_K.new_zeros(len(mine.targets_N)).index_put((first_K,), values_K))

    single_K = (spans_K4[:, 1] == 1) & (spans_K4[:, 3] == 1)
    masks = placed(torch.ones_like(single_K)), placed(single_K)
    return AlignedScores(placed(divergence_K), mine.mask_BT, *masks, placed(shared_K))


def _flat_spans(spans: Sequence[Tensor], mine: SupervisedStates, theirs: SupervisedStates) -> Tensor:
    """The spans of all rows, [K, 4], with the first tokens as indices of all N supervised tokens."""
    device = mine.states_ND.device
    ends = [states.mask_BT.sum(1).cumsum(0).tolist() for states in (mine, theirs)]
    starts = zip(*([0, *row[:-1]] for row in ends), strict=True)
    moved = [row + torch.tensor([one, 0, other, 0]) for row, (one, other) in zip(spans, starts, strict=True)]
    return torch.cat(moved).to(device)


def later_logps(model: nn.Module, found: SupervisedStates, spans_K2: Tensor, temperature: float) -> Tensor:
    """Log-probability of the tokens of each span after its first one, [K]; `spans_K2` has first token and count."""
    first_K, later_K = spans_K2[:, 0], spans_K2[:, 1] - 1
    span = torch.repeat_interleave(later_K)
    within = torch.arange(len(span), device=span.device) - (later_K.cumsum(0) - later_K)[span]
    at = first_K[span] + 1 + within
    sums_K = torch.zeros(len(first_K), device=span.device, dtype=upcast(found.states_ND[:0]).dtype)
    if not len(at):
        return sums_K

    def chunk(states: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (token_logps(upcast(logits_of(model, states)) / temperature, targets),)

    (logps,) = in_chunks(chunk, found.states_ND[at], found.targets_N[at], vocabulary=model_width(model))
    return sums_K.index_add(0, span, logps)


def span_outcomes(outcome_K: Tensor, ref_outcome_K: Tensor, spans_K4: Tensor, shared: int) -> Tensor:
    """The outcome of each span: a shared token that spells it, else S."""
    found_K = torch.full_like(outcome_K, shared)
    for tokens_K, count_K in ((ref_outcome_K, spans_K4[:, 3]), (outcome_K, spans_K4[:, 1])):
        found_K = torch.where((count_K == 1) & (tokens_K < shared), tokens_K, found_K)
    return found_K
