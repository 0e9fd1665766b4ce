"""`postrain verify RUN`: re-executes random updates of a run and compares bits; writes a receipt.

A region is a few updates after a checkpoint, or after the start. It is re-executed in a temporary folder, and its
metrics, samples, held-out rows, weights and optimizer states are compared with those of the run. The inputs, the final
model and the last evaluation are checked too (verify_state.py), and the records of all updates against each other
(verify_records.py). A changed number stays undetected only if its region is not drawn.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postrain.config.tree import parse
from postrain.data.cache_key import file_digest
from postrain.errors import ConfigError
from postrain.hardware.checkpoint_io import FileCheckpointIO
from postrain.jobs.findings import TOLERANCE, Findings
from postrain.jobs.lifecycle import silence_library_warnings
from postrain.jobs.replay import replay, replay_config, starts
from postrain.jobs.verify_records import check_consistency, compare_records
from postrain.jobs.verify_state import FinalState, check_inputs
from postrain.jsonl import Record, number, read_json
from postrain.runs.folder import RunFolder
from postrain.runs.forks import checkpoint_of
from postrain.runs.manifest import hardware, versions
from postrain.runs.sessions import parts, thread_changes
from postrain.runs.status import checkpoints
from postrain.training.checkpoints import is_whole
from postrain.training.config import TrainConfig

SAME_VERSIONS = ("torch", "transformers", "peft", "tokenizers", "numpy")
"""Packages whose version may change results."""
COMPARED_STATE = ("state_dict", "optimizer_states", "postrain")
DIGESTED = ("config.yaml", "manifest.json", "metrics.jsonl", "samples.jsonl", "held_out.jsonl", "result.json")


@dataclass(frozen=True)
class Region:
    """Updates after the checkpoint of `first`, or after the start if it is 0, up to `last`."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"updates {self.first + 1} to {self.last}"


def verify(
    run: RunFolder, *, updates: int, regions: int, seed: int, tell: Callable[[str], None], evaluation: bool = False
) -> Record:
    """Verifies a run; returns the receipt. `tell` gets a line before each step; `evaluation` repeats the last one.

    Raises ConfigError for a run that is not recorded well enough, is still running, or cannot be re-executed here.
    """
    silence_library_warnings()
    if run.status.current().get("status") == "running":
        raise ConfigError(f"verify: {run.path} is still running; wait for its end")
    last = run.last_update
    if not last:
        raise ConfigError(f"verify: {run.path} has recorded no update; there is nothing to verify")
    began, choose, manifest = time.time(), random.Random(seed), read_json(run.manifest)
    found = Findings(notes=differences(manifest))
    found.exact = not found.notes
    check_consistency(found, run)
    chosen = choose_regions(run, last, updates, regions, choose)
    config = parse(replay_config(run, allow_change=True), TrainConfig)
    config.check()
    final = [FinalState(found, run, config, last, choose, evaluation=evaluation)]
    for index, region in enumerate(chosen):
        tell(f"re-executing {region}" + ("; checking the final model" if not index else ""))
        re_execute(found, run, region, final if not index else [])
    return receipt(run, found, chosen, seconds=time.time() - began, last=last, seed=seed, updates=updates)


def differences(manifest: Record) -> list[str]:
    """Why numbers cannot be compared bit for bit: other hardware or versions in any session, or a GPU."""
    compared = (("hardware", hardware(), ("platform", "cpu", "gpus")), ("versions", versions(), SAME_VERSIONS))
    found = [
        f"{name} was {made[name]}, is {here.get(name)}"
        for part, here, names in compared
        for made in parts(manifest, part)
        for name in names
        if name in made and made[name] != here.get(name)
    ]
    found = [*dict.fromkeys(found)]
    trainer = _part(_part(manifest, "config"), "trainer")
    if trainer.get("accelerator") == "gpu" and not trainer.get("deterministic"):
        found.append("GPU kernels add in varying order without trainer.deterministic=true")
    return found


def choose_regions(run: RunFolder, last: int, updates: int, regions: int, choose: random.Random) -> list[Region]:
    """Random regions of `updates` updates each, in order. A region ends with the last update of a session if the next
    one has another number of threads."""
    ends = [*thread_changes(read_json(run.manifest)), last]
    possible = [
        Region(first, min(first + updates, *(end for end in ends if end > first)))
        for first in starts(run)
        if first < last
    ]
    if not possible:
        raise ConfigError(f"verify: no update of {run.path} can be re-executed with its present settings")
    chosen = choose.sample(possible, min(regions, len(possible)))
    return sorted(chosen, key=lambda region: region.first)


def re_execute(found: Findings, run: RunFolder, region: Region, final: Sequence[FinalState]) -> None:
    """Re-executes a region and compares its records and checkpoints; `final` does further checks before it starts."""
    with tempfile.TemporaryDirectory(prefix="postrain-verify-") as scratch:
        try:
            repeated = replay(run, region.first, region.last, Path(scratch, "replay"), callbacks=final, new_rows=True)
        except ConfigError as error:
            # Such as a full disk: it contradicts no record.
            if not found.mismatches:
                raise ConfigError(f"verify: {region} of {run.path} cannot be re-executed: {error}") from None
            found.notes.append(f"{region}: cannot be re-executed: {error}")
            return
        if final:
            check_inputs(found, run, repeated)
        compare_records(found, run, repeated, region.first, region.last)
        for update in range(region.first + 1, region.last + 1):
            paths = [checkpoint_of(folder, update) for folder in (run, repeated)]
            if all(path.is_file() for path in paths) and is_whole(paths[0]):
                one, other = (FileCheckpointIO().load_checkpoint(path, weights_only=True) for path in paths)
                for part in COMPARED_STATE:
                    found.tensors(
                        "weights and optimizer states", f"checkpoints/{paths[0].name}", one[part], other[part]
                    )


def receipt(
    run: RunFolder, found: Findings, chosen: Sequence[Region], *, seconds: float, last: int, seed: int, updates: int
) -> Record:
    """The compared files and their digest, the results, versions and hardware."""
    reachable = {u for first in starts(run) for u in range(first + 1, min(first + updates, last) + 1)}
    repeated = {u for region in chosen for u in range(region.first + 1, region.last + 1)}
    took = number(run.status.read().get("seconds"))
    return {
        "verdict": "mismatch" if found.mismatches else "verified",
        "mismatches": found.mismatches,
        "comparison": "bit for bit" if found.exact else f"within {TOLERANCE:.0%}",
        "notes": found.notes,
        "re_executed": [str(region) for region in chosen],
        "coverage": {"re_executed": len(repeated), "could_be_chosen": len(reachable), "updates": last},
        "compared": dict(sorted(found.compared.items())),
        "seed": seed,
        "digest": digest(run),
        "seconds": round(seconds, 1),
        "share_of_run": round(seconds / took, 4) if took else None,
        "versions": versions(),
        "hardware": hardware(),
    }


def digest(run: RunFolder) -> str:
    """sha256 of the files that the receipt is about: records, config, newest checkpoint, exported weights."""
    state = [*checkpoints(run.path)[-1:], *sorted(run.model.glob("*.safetensors"))]
    total = hashlib.sha256()
    for path in [*(run.path / name for name in DIGESTED), *state]:
        if path.is_file():
            total.update(f"{path.relative_to(run.path)} {file_digest(path)}\n".encode())
    return total.hexdigest()


def _part(record: Any, name: str) -> Record:
    part = record.get(name) if isinstance(record, dict) else None
    return part if isinstance(part, dict) else {}
