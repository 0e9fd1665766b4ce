"""The reference log-prob cache: log-probabilities of data rows under a fixed model, keyed by the rows' content.

The cache's name on disk covers the model, how it was computed, and every row; rows are put into one order first, so
that another seed over the same data finds the cache of an earlier run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from postrain.models.scoring import score
from postrain.types import Batch, Rows

LogpsByRow = dict[bytes, Tensor]
DIGEST = 16


def row_digest(ids: Tensor, supervised: Tensor) -> bytes:
    """Digest of a row's tokens and mask."""
    content = ids.numpy().tobytes() + b"|" + supervised.numpy().tobytes()
    return hashlib.blake2b(content, digest_size=DIGEST).digest()


def digests(rows: Rows) -> list[bytes]:
    """One for each row."""
    return [row_digest(*row) for row in zip(rows.ids, rows.supervised, strict=True)]


def rows_in(batch: Batch) -> Rows:
    """All rows of a batch, one field after the other."""
    if isinstance(batch, Rows):
        return batch
    first, *others = [value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Rows)]
    return sum(others, start=first)


def distinct(batch: Batch) -> Batch:
    """The distinct items of a batch, in an order that depends on their content alone."""
    found = digests(rows_in(batch))
    keys = [b"".join(found[item :: len(batch)]) for item in range(len(batch))]
    return batch.select([item for _, item in sorted({key: item for item, key in enumerate(keys)}.items())])


@torch.no_grad()
def logps_by_row(model: nn.Module, batch: Batch, groups: Iterable[Sequence[int]]) -> LogpsByRow:
    """Log-probabilities [T] of every row in these groups of the batch's items, on the CPU."""
    found = {}
    for group in groups:
        rows = rows_in(batch.select(group))
        scores = score(model, rows)
        logps_N, lengths_B = scores.logps_BT[scores.mask_BT].cpu(), scores.mask_BT.sum(1).tolist()
        found |= zip(digests(rows), logps_N.split(lengths_B), strict=True)
    return found


def zeros_by_row(rows: Rows) -> LogpsByRow:
    """Zeros for each token: as if every one were certain."""
    lengths = [int(supervised.sum()) for supervised in rows.supervised]
    return dict(zip(digests(rows), map(torch.zeros, lengths), strict=True))


def in_order(known: Mapping[bytes, Tensor], rows: Rows) -> tuple[Tensor, ...]:
    """The log-probabilities [T] of these rows."""
    return tuple(known[digest] for digest in digests(rows))


def cache_name(batch: Batch, origin: str) -> str:
    """Changes with `origin` and with any token or mask of any row."""
    digest = hashlib.blake2b(origin.encode(), digest_size=12)
    for row in digests(rows_in(batch)):
        digest.update(row)
    return f"reference-{digest.hexdigest()}"


def write(directory: Path, known: Mapping[bytes, Tensor]) -> None:
    """The log-probabilities as one safetensors file."""
    tensors = {
        "digests": torch.frombuffer(bytearray(b"".join(known)), dtype=torch.uint8),
        "lengths": torch.tensor([len(logps) for logps in known.values()]),
        "logps": torch.cat(list(known.values())),
    }
    save_file(tensors, directory / "logps.safetensors")


def read(directory: Path) -> LogpsByRow:
    """What `write` wrote."""
    found = load_file(directory / "logps.safetensors")
    names = found["digests"].view(-1, DIGEST).numpy()
    pieces = found["logps"].split(found["lengths"].tolist())
    return {name.tobytes(): logps for name, logps in zip(names, pieces, strict=True)}
