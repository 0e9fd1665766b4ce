"""Log-probabilities, entropies and values of supervised tokens under a model: the hot path of training.

Only positions that predict a supervised token reach the LM head. Their logits are computed in chunks, which are
recomputed in the backward pass if there is more than one, so the [N, V] logits are never materialized as a whole. Rows
are packed and shared prompts are computed once (models/packing.py). Micro-batches are in micro_batches.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from postrain.losses.divergence import exact_kl
from postrain.losses.supervised import token_logps
from postrain.models.linear_logps import linear_logps, plain_head
from postrain.models.packing import hidden_states
from postrain.models.parts import logits_of, model_width, upcast
from postrain.models.reference import Reference
from postrain.types import Batch, Rows

# Elements of a [positions, V] chunk: 128 MiB in float32 on a CPU; 1 GiB on a GPU, where kernel launches cost time;
# 256 MiB on an Apple GPU, which shares the memory of the CPU.
CHUNK_ELEMENTS = {"cpu": 2**25, "cuda": 2**28, "mps": 2**26}


EntropyMode = Literal["off", "constant", "differentiable"]
"""Whether scores have the entropy of the next-token distributions, and its gradient."""


@dataclass(frozen=True)
class Scores:
    """A model's log-probabilities, entropies and values at the supervised tokens of a batch of Rows."""

    logps_BT: Tensor
    """Natural log-probability of each supervised token, float32; 0 where mask_BT is False."""
    mask_BT: Tensor
    """True at real supervised tokens."""
    entropy_BT: Tensor | None = None
    """Entropy of the next-token distribution at each supervised token, in nats; None unless requested."""
    values_BT: Tensor | None = None
    """Output of the value head at each supervised token; None without a head."""


@dataclass(frozen=True)
class SupervisedStates:
    """The trunk's hidden states that predict each supervised token."""

    states_ND: Tensor
    targets_N: Tensor
    """The supervised token ids."""
    mask_BT: Tensor
    """True at the N supervised tokens in the padded [B, T] layout, row-major."""

    def unflatten(self, values_N: Tensor) -> Tensor:
        """[N] → [B, T], 0 where mask_BT is False."""
        values_BT = values_N.new_zeros(self.mask_BT.shape)
        values_BT[self.mask_BT] = values_N
        return values_BT


def supervised_states(model: nn.Module, rows: Rows) -> SupervisedStates:
    """Runs one forward pass of the trunk and selects the states that predict supervised tokens."""
    states_ND, index_BL = hidden_states(model, rows.ids)
    supervised_BL = pad_sequence(list(rows.supervised), batch_first=True, padding_value=False)
    counts_B = supervised_BL.sum(1)
    mask_BT = torch.arange(int(counts_B.max())) < counts_B[:, None]
    at_N = index_BL[:, :-1][supervised_BL[:, 1:]]
    targets_N = torch.cat([ids[mask] for ids, mask in zip(rows.ids, rows.supervised, strict=True)])
    at_N, targets_N, mask_BT = (tensor.to(states_ND.device) for tensor in (at_N, targets_N, mask_BT))
    return SupervisedStates(states_ND.index_select(0, at_N), targets_N, mask_BT)


def score(
    model: nn.Module,
    rows: Rows,
    *,
    temperature: float = 1.0,
    entropy: EntropyMode = "off",
    head: Callable[[Tensor], Tensor] | None = None,
) -> Scores:
    """Scores all rows in one differentiable forward pass.

    `temperature` divides the logits, as in sampling; `head` maps states [N, D] to values [N, 1].
    """
    found = supervised_states(model, rows)

    def chunk(states_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = upcast(logits_of(model, states_ND))
        if temperature != 1:
            logits_NV = logits_NV / temperature
        logps_N = token_logps(logits_NV, targets_N)
        if entropy == "off":
            return logps_N, logps_N.detach()
        if entropy == "constant":
            logits_NV = logits_NV.detach()
            expected_N = torch.softmax(logits_NV, -1).mul_(logits_NV).sum(-1)
        else:
            expected_N = (torch.softmax(logits_NV, -1) * logits_NV).sum(-1)
        return logps_N, logits_NV.logsumexp(-1) - expected_N

    size, head_layer = chunk_size(found.states_ND, model_width(model)), plain_head(model)
    if torch.is_grad_enabled() and head_layer is not None and len(found.targets_N) > size:
        options = {"size": size, "temperature": temperature, "entropy": entropy != "off"}
        logps_N, entropy_N = linear_logps(found.states_ND, head_layer, found.targets_N, **options)
    else:
        logps_N, entropy_N = in_chunks(chunk, found.states_ND, found.targets_N, vocabulary=model_width(model))
    return Scores(
        logps_BT=found.unflatten(logps_N),
        mask_BT=found.mask_BT,
        entropy_BT=found.unflatten(entropy_N) if entropy != "off" else None,
        values_BT=found.unflatten(upcast(head(found.states_ND)).squeeze(-1)) if head is not None else None,
    )


def chunk_size(states_ND: Tensor, vocabulary: int) -> int:
    """Number of positions in a chunk."""
    return max(1, CHUNK_ELEMENTS[states_ND.device.type] // vocabulary)


def in_chunks(function: Callable[..., tuple[Tensor, ...]], *flat: Tensor, vocabulary: int) -> tuple[Tensor, ...]:
    """Applies `function` to chunks of at most CHUNK_ELEMENTS / V positions and concatenates the results."""
    size = chunk_size(flat[0], vocabulary)
    if len(flat[0]) <= size:
        return function(*flat)
    pieces = zip(*(tensor.split(size) for tensor in flat), strict=True)
    if torch.is_grad_enabled():
        found = [checkpoint(function, *piece, use_reentrant=False) for piece in pieces]
    else:
        found = [function(*piece) for piece in pieces]
    return tuple(torch.cat(outputs) for outputs in zip(*found, strict=True))


@torch.no_grad()
def log_sum_squares(model: nn.Module, rows: Rows) -> Tensor:
    """log Σ π(v)² over the vocabulary at each supervised token, [B, T], 0 outside: the mean log-probability scale of a
    sampled token."""
    found = supervised_states(model, rows)

    def chunk(states_ND: Tensor) -> tuple[Tensor]:
        logits_NV = upcast(logits_of(model, states_ND))
        return ((2 * logits_NV).logsumexp(-1) - 2 * logits_NV.logsumexp(-1),)

    return found.unflatten(*in_chunks(chunk, found.states_ND, vocabulary=model_width(model)))


def values(model: nn.Module, rows: Rows, head: Callable[[Tensor], Tensor]) -> Tensor:
    """The head's value at each supervised token, [B, T], 0 outside; computes no logits."""
    found = supervised_states(model, rows)
    return found.unflatten(upcast(head(found.states_ND)).squeeze(-1))


@dataclass(frozen=True)
class ReferenceScores(Batch):
    """Scores of a model and its reference on the same supervised tokens."""

    logps_BT: Tensor
    ref_logps_BT: Tensor
    """Log-probabilities under the reference, without gradient."""
    kl_BT: Tensor
    """Exact KL(model ‖ reference) of the two next-token distributions, summed over the vocabulary; or the `divergence`
    given to `score_with_reference`."""
    mask_BT: Tensor
    values_BT: Tensor
    """The head's values under the model; zeros without a head."""
    entropy_BT: Tensor | None = None
    """Entropy of the next-token distribution at each supervised token, in nats; None unless requested."""


def score_with_reference(
    model: nn.Module,
    reference: Reference,
    rows: Rows,
    *,
    reference_rows: Rows | None = None,
    reference_states_ND: Tensor | None = None,
    temperature: float = 1.0,
    entropy: EntropyMode = "off",
    head: Callable[[Tensor], Tensor] | None = None,
    divergence: Callable[[Tensor, Tensor, Tensor], Tensor] = exact_kl,
) -> ReferenceScores:
    """Scores all rows under model and reference, one forward pass each; differentiable in `model`, KL included.

    `reference_rows` are the rows that the reference reads, if other ones: with the same supervised tokens after other
    prompts; `reference_states_ND` are its last hidden states at these tokens, if known. `divergence` maps the
    log-probabilities of model and reference and the probabilities of the model, [N, V] each, to [N]. If one model has
    more logits than the other, those are cut: they pad the vocabulary.
    """
    mine = supervised_states(model, rows)
    if reference_states_ND is None:
        with torch.no_grad(), reference.scoring() as frozen:
            reference_states_ND = supervised_states(frozen, reference_rows or rows).states_ND

    def chunk(states_ND: Tensor, ref_states_ND: Tensor, targets_N: Tensor) -> tuple[Tensor, ...]:
        logits_NV = logits_of(model, states_ND)
        with torch.no_grad(), reference.scoring() as frozen:
            ref_logits_NV = logits_of(frozen, ref_states_ND)
            width = min(logits_NV.shape[-1], ref_logits_NV.shape[-1])
            ref_logps_NV = (upcast(ref_logits_NV[:, :width]) / temperature).log_softmax(-1)
        logps_NV = (upcast(logits_NV[:, :width]) / temperature).log_softmax(-1)
        # A padding token may be sampled; the reference has no number for it.
        targets_N = targets_N.clamp(max=width - 1)
        probs_NV = logps_NV.exp()
        kl_N = divergence(logps_NV, ref_logps_NV, probs_NV)
        with torch.set_grad_enabled(torch.is_grad_enabled() and entropy == "differentiable"):
            entropy_N = kl_N.detach() if entropy == "off" else -(probs_NV * logps_NV).sum(-1)
        sampled_logps = (table.gather(-1, targets_N[:, None]).squeeze(-1) for table in (logps_NV, ref_logps_NV))
        return *sampled_logps, kl_N, entropy_N

    both = mine.states_ND, reference_states_ND.to(mine.states_ND.device)
    flat = in_chunks(chunk, *both, mine.targets_N, vocabulary=model_width(model))
    logps_BT, ref_logps_BT, kl_BT, entropy_BT = map(mine.unflatten, flat)
    values_BT = torch.zeros_like(kl_BT) if head is None else mine.unflatten(upcast(head(mine.states_ND)).squeeze(-1))
    return ReferenceScores(
        logps_BT, ref_logps_BT, kl_BT, mine.mask_BT, values_BT, entropy_BT if entropy != "off" else None
    )


def sequence_scores(model: nn.Module, rows: Rows) -> Tensor:
    """A scalar model's output at the last real token of each row, [B]; independent of padding."""
    states_ND, index_BL = hidden_states(model, rows.ids)
    last_B = torch.tensor([len(ids) - 1 for ids in rows.ids])
    at_B = index_BL.gather(1, last_B[:, None]).squeeze(1).to(states_ND.device)
    return upcast(logits_of(model, states_ND.index_select(0, at_B))).squeeze(-1)


def step_logits(model: nn.Module, rows: Rows) -> Tensor:
    """A scalar model's output at the end of each step, [B, S], 0 outside: log-odds that the step is correct."""
    return values(model, rows, partial(logits_of, model))
