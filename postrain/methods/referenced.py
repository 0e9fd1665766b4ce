"""What methods share that weigh a completion by log π(completion) − log π_ref(completion).

The reference's half is known before learning. It is computed once for all rows before the first update and kept on
disk by content (`cached`), or at every update (`fresh`), from a frozen copy or with the adapter off; the numbers are
the same. Before the first update the policy is its own reference, so the pass needs no second model.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from postrain import parallel
from postrain.data.collate import collate
from postrain.data.module import DataModule
from postrain.methods.base import Method
from postrain.models.cache import cache_directory, kept
from postrain.models.heads import frozen_copy
from postrain.models.reference import Reference, in_eval_mode
from postrain.scoring import micro_batches, score
from postrain.types import Batch, ConfigError, CountOrZero, Rows

START_TOLERANCE = 1e-3
LogpsByRow = dict[bytes, Tensor]


def row_digest(ids: Tensor, supervised: Tensor) -> bytes:
    """16 bytes that stand for a row's tokens and mask."""
    content = ids.cpu().numpy().tobytes() + b"|" + supervised.cpu().numpy().tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()


def rows_in(batch: Batch) -> Rows:
    """All rows of a batch, one field after the other."""
    if isinstance(batch, Rows):
        return batch
    first, *others = [value for f in fields(batch) if isinstance(value := getattr(batch, f.name), Rows)]
    return sum(others, start=first)


@torch.no_grad()
def logps_by_row(model: nn.Module, batch: Batch, groups: Sequence[Sequence[int]]) -> LogpsByRow:
    """Log-probabilities [T] of every row in these groups of the batch's items, on the CPU, by the row's digest."""
    found = {}
    for group in groups:
        rows = rows_in(batch.select(group))
        scores = score(model, rows)
        for ids, supervised, logps_T, mask_T in zip(
            rows.ids, rows.supervised, scores.logps_BT, scores.mask_BT, strict=True
        ):
            found[row_digest(ids, supervised)] = logps_T[mask_T].cpu()
    return found


def in_order(known: Mapping[bytes, Tensor], rows: Rows) -> tuple[Tensor, ...]:
    """The log-probabilities [T] of these rows, on their device."""
    return tuple(
        known[row_digest(ids, supervised)].to(ids.device)
        for ids, supervised in zip(rows.ids, rows.supervised, strict=True)
    )


class Referenced(Method):
    """A method with a reference."""

    reference_logps: Literal["cached", "fresh", "none"]
    """cached: of all rows once, before the first update, kept on disk. fresh: at every update. none: taken to be 0."""
    sync_every: CountOrZero
    """Updates after which the reference follows the policy (TR-DPO, Gorbatovski et al. 2024); 0 leaves it in place."""
    sync_mix: Annotated[float, Interval(gt=0, le=1)]
    """The policy's share in the new reference."""

    def needs_reference(self) -> bool:
        return self.reference_logps == "fresh"

    def attached(self) -> None:
        self.known: LogpsByRow = {}
        self.moving: Reference | None = None
        if self.sync_every:
            self.moving = self.movable()

    def movable(self) -> Reference:
        """A reference of the method's own that can follow the policy; that of evaluations stays at the start."""
        if self.reference_logps != "fresh":
            raise ConfigError(
                f"method.sync_every={self.sync_every} moves the reference; that needs method.reference_logps=fresh, "
                f"got {self.reference_logps}"
            )
        if hasattr(self.policy, "disable_adapter"):
            raise ConfigError(
                "method.sync_every: with an adapter the reference is the adapter switched off; leave it 0"
            )
        with self.reference.scoring() as start:
            if [p.shape for p in start.parameters()] != [p.shape for p in self.policy.parameters()]:
                raise ConfigError("method.sync_every: the reference has other layers than the policy; leave it 0")
            return Reference(self.policy, frozen_copy(start))

    def setup(self, stage: str) -> None:
        """Before the policy learns anything, or takes back what it had learned."""
        if self.reference_logps == "cached":
            data: Any = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue] - set by fit
            self.known = self.computed(everything(data))

    def computed(self, batch: Batch) -> LogpsByRow:
        """Log-probabilities of all rows, read from disk where they were computed before; ranks share the work."""
        path = cache_directory() / f"reference-{self.cache_key(batch)}"
        said = f"reference: log-probabilities of {len(rows_in(batch))} rows"
        if all(parallel.gather(path.is_dir())):
            say(f"{said}, read from {path}\n")
            return read(path)
        say(f"{said}, computing them once ... ")
        began = time.monotonic()
        groups = micro_batches(batch.cost(), self.micro_batch_tokens)
        with self.trainer.strategy.precision_plugin.forward_context(), self.start() as model:
            mine = logps_by_row(model, batch, groups[parallel.rank() :: parallel.world_size()])
        known = {digest: logps for part in parallel.gather(mine) for digest, logps in part.items()}
        kept(path.name, lambda directory: write(directory, known))
        say(f"{time.monotonic() - began:.1f} s, kept in {path}\n")
        return known

    @contextmanager
    def start(self) -> Iterator[nn.Module]:
        """The reference model; where nobody has made one, the policy itself, which has not learned anything yet."""
        if self.parts.reference is not None:
            with self.parts.reference.scoring() as model:
                yield model
        else:
            with in_eval_mode(self.policy):
                yield self.policy

    def cache_key(self, batch: Batch) -> str:
        """Changes with the weights the logs are of, their precision, and with any token or mask."""
        rows = rows_in(batch)
        # How rows are cut decides the last bits: a run's numbers must not depend on who filled the cache.
        made_with = f"{self.parts.origin} {self.micro_batch_tokens}"
        digest = hashlib.blake2b(made_with.encode(), digest_size=12)
        for ids, supervised in zip(rows.ids, rows.supervised, strict=True):
            digest.update(row_digest(ids, supervised))
        return digest.hexdigest()

    def reference_of(self, batch: Batch) -> LogpsByRow:
        """The reference's log-probabilities of every row of a batch."""
        if self.reference_logps == "cached":
            return self.known
        if self.reference_logps == "none":
            rows = rows_in(batch)
            zeros = [torch.zeros(int(supervised.sum())) for supervised in rows.supervised]
            return dict(zip(map(row_digest, rows.ids, rows.supervised), zeros, strict=True))
        with (self.moving or self.reference).scoring() as model:
            return self.logps_by_row(model, batch)

    def logps_by_row(self, model: nn.Module, batch: Batch) -> LogpsByRow:
        """Of all items of a batch, without gradient."""
        return logps_by_row(model, batch, micro_batches(batch.cost(), self.micro_batch_tokens))

    def check_start(self, log_ratio_max: Tensor) -> None:
        """Before the first step the policy is its reference. Raises ConfigError in float32 where it is not."""
        begun = self.counters.optimizer_steps or self.dropout or self.reference_logps == "none"
        if begun or self.parts.foreign_reference or not self.in_float32() or log_ratio_max <= START_TOLERANCE:
            return
        raise ConfigError(
            f"method.reference_logps={self.reference_logps}: before the first update a token's log-ratio to the "
            f"reference is {float(log_ratio_max):.2g} and has to be 0; the reference is not what the policy starts from"
        )

    def minibatches(self, prepared: Batch) -> Iterator[Batch]:
        yield prepared
        if self.moving is not None and (self.counters.updates + 1) % self.sync_every == 0:
            self.follow(self.moving)

    @torch.no_grad()
    def follow(self, reference: Reference) -> None:
        """Moves the reference towards the policy: θ_ref ← mix·θ + (1 − mix)·θ_ref."""
        with reference.scoring() as model:
            for theirs, mine in zip(model.parameters(), self.policy.parameters(), strict=True):
                theirs.lerp_(mine, self.sync_mix)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.sync_every and self.device_mesh is not None:
            raise ConfigError("method.sync_every: not with trainer.strategy=fsdp, which keeps no whole policy; use ddp")

    def state(self) -> dict[str, Any]:
        if self.moving is None:
            return {}
        with self.moving.scoring() as model:
            return {"reference": model.state_dict()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if self.moving is not None:
            with self.moving.scoring() as model:
                model.load_state_dict(state["reference"])


def say(text: str) -> None:
    """Prints, on the first rank alone."""
    if parallel.rank() == 0:
        print(text, end="", flush=True)


def everything(data: DataModule) -> Batch:
    """All items the run will look at: those of its updates, and the held-out ones."""
    schedule = data.train_dataloader()
    return collate([*(schedule.items[index] for index in schedule.visited()), *data.eval])


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
    digests = found["digests"].view(-1, 16).numpy()
    pieces = found["logps"].split(found["lengths"].tolist())
    return {digest.tobytes(): logps for digest, logps in zip(digests, pieces, strict=True)}
