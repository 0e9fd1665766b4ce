"""Reference log-prob cache: log-probabilities of data rows under a fixed model, keyed by the content of the rows.

The name of the cache file depends on the model, on how log-probabilities are computed and on the set of rows, but not
on their order: runs with other seeds share the cache.
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


def row_digests(rows: Rows) -> list[bytes]:
    """The digest of each row."""
    return [row_digest(*row) for row in zip(rows.ids, rows.supervised, strict=True)]


def rows_in(batch: Batch) -> Rows:
    """All rows of a batch, field by field."""
    if isinstance(batch, Rows):
        return batch
    first, *others = [value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Rows)]
    return sum(others, start=first)


def deduplicate(batch: Batch) -> Batch:
    """The distinct items of a batch, sorted by the digests of their rows."""
    digests = row_digests(rows_in(batch))
    keys = [b"".join(digests[item :: len(batch)]) for item in range(len(batch))]
    return batch.select([item for _, item in sorted({key: item for item, key in enumerate(keys)}.items())])


@torch.no_grad()
def logps_by_row(model: nn.Module, batch: Batch, groups: Iterable[Sequence[int]]) -> LogpsByRow:
    """Log-probabilities [T] of every row in these groups of item indices, on the CPU."""
    logps: LogpsByRow = {}
    for group in groups:
        rows = rows_in(batch.select(group))
        scores = score(model, rows)
        logps_N, lengths_B = scores.logps_BT[scores.mask_BT].cpu(), scores.mask_BT.sum(1).tolist()
        logps |= zip(row_digests(rows), logps_N.split(lengths_B), strict=True)
    return logps


def zeros_by_row(rows: Rows) -> LogpsByRow:
    """Log-probability 0 for every token, for reference_free."""
    lengths = [int(supervised.sum()) for supervised in rows.supervised]
    return dict(zip(row_digests(rows), map(torch.zeros, lengths), strict=True))


def lookup(logps: Mapping[bytes, Tensor], rows: Rows) -> tuple[Tensor, ...]:
    """The log-probabilities [T] of these rows, in their order."""
    return tuple(logps[digest] for digest in row_digests(rows))


def cache_name(batch: Batch, origin: str) -> str:
    """File name of the cache; depends on `origin` and on every token and mask of every row."""
    digest = hashlib.blake2b(origin.encode(), digest_size=12)
    for row in row_digests(rows_in(batch)):
        digest.update(row)
    return f"reference-{digest.hexdigest()}"


def write(directory: Path, logps: Mapping[bytes, Tensor]) -> None:
    """Writes the log-probabilities to one safetensors file in `directory`."""
    tensors = {
        "digests": torch.frombuffer(bytearray(b"".join(logps)), dtype=torch.uint8),
        "lengths": torch.tensor([len(logps_T) for logps_T in logps.values()]),
        "logps": torch.cat(list(logps.values())),
    }
    save_file(tensors, directory / "logps.safetensors")


def read(directory: Path) -> LogpsByRow:
    """Reads the log-probabilities written by `write`."""
    tensors = load_file(directory / "logps.safetensors")
    digests = tensors["digests"].view(-1, DIGEST).numpy()
    logps = tensors["logps"].split(tensors["lengths"].tolist())
    return {digest.tobytes(): logps_T for digest, logps_T in zip(digests, logps, strict=True)}
