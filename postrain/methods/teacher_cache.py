"""Caches the outputs of a fixed teacher for given completions, computed once before the first update.

For a local model the cache holds the last hidden states: later epochs run only its output layer, and the divergence is
exact. For a teacher behind a server it holds the answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from postrain.hardware import collectives
from postrain.methods.reference_cache import row_digests, rows_in
from postrain.methods.server_teacher import ServerTeacher
from postrain.models.reference import Reference
from postrain.models.scoring import supervised_states
from postrain.models.top_k import TopK
from postrain.types import Batch, Rows


@dataclass(frozen=True)
class TeacherCache:
    """By row, keyed by its tokens and mask."""

    states: dict[bytes, Tensor] = field(default_factory=dict)
    """Hidden states [T, D] that predict each supervised token, on the CPU."""
    top_k: dict[bytes, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Tokens and log-probabilities of a server, [T, K] each."""

    @classmethod
    @torch.no_grad()
    def of_model(cls, teacher: Reference, batch: Batch, groups: Iterable[Sequence[int]]) -> TeacherCache:
        """The states of all rows of these groups of item indices of all ranks."""
        states: dict[bytes, Tensor] = {}
        for group in groups:
            rows = rows_in(batch.select(group))
            with teacher.scoring() as model:
                found = supervised_states(model, rows)
            pieces = found.states_ND.cpu().split(found.mask_BT.sum(1).tolist())
            states |= zip(row_digests(rows), pieces, strict=True)
        return cls(states={digest: state for part in collectives.gather(states) for digest, state in part.items()})

    @classmethod
    def of_server(cls, server: ServerTeacher, rows: Rows) -> TeacherCache:
        """The answers of a server about these rows of all ranks."""
        found = server.score(rows)
        answers = dict(zip(row_digests(rows), zip(found.ids, found.logps, strict=True), strict=True))
        return cls(top_k={digest: pair for part in collectives.gather(answers) for digest, pair in part.items()})

    def states_of(self, rows: Rows) -> Tensor | None:
        """The states of the supervised tokens of these rows, [N, D]; None if one of them is not known."""
        found = [self.states.get(digest) for digest in row_digests(rows)]
        known = [states for states in found if states is not None]
        return torch.cat(known) if len(known) == len(found) else None

    def top_k_of(self, rows: Rows) -> TopK | None:
        """The answers about these rows; None if one of them is not known."""
        found = [self.top_k.get(digest) for digest in row_digests(rows)]
        known = [pair for pair in found if pair is not None]
        ids, logps = zip(*known, strict=True) if known else ((), ())
        return TopK(ids, logps) if len(known) == len(found) else None

    def bytes(self) -> int:
        """Memory of all tensors."""
        tensors = [*self.states.values(), *(tensor for pair in self.top_k.values() for tensor in pair)]
        return sum(tensor.nbytes for tensor in tensors)
