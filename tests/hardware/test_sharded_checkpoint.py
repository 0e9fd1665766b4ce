"""Checkpoints of sharded runs, in a group of one rank; tests/hardware/test_ranks.py has two."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.distributed.tensor import distribute_tensor

from postrain.errors import ConfigError
from postrain.hardware.checkpoint_io import FileCheckpointIO
from postrain.hardware.sharded_checkpoint import INDEX, ShardedSave, ShardReader, are_intact, joined, separated
from postrain.runs.folder import RunFolder
from postrain.runs.method_protocol import method_of
from postrain.training.checkpoints import newest_readable
from tests.test_methods import added_callback
from tests.training_runs import small_run

SHARDED = ("method=sft", "trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=1", "trainer.precision=fp32")


@pytest.fixture
def saved(mesh, tmp_path) -> Path:
    """A checkpoint with a sharded weight, which has changed while it was written."""
    weight = distribute_tensor(torch.arange(12.0).view(4, 3), mesh)
    checkpoint = {"state_dict": {"w": weight}, "optimizer_states": [{"state": {0: {"exp_avg": weight * 2, "step": 3}}}]}
    saving = ShardedSave(checkpoint, tmp_path / "update=000001.ckpt")
    weight.zero_()
    saving.finish()
    return tmp_path / "update=000001.ckpt"


def test_checkpoint_is_read_with_whole_tensors(saved):
    found = FileCheckpointIO().load_checkpoint(saved, weights_only=True)
    expected = torch.arange(12.0).view(4, 3)
    assert found["state_dict"]["w"].equal(expected)
    state = found["optimizer_states"][0]["state"][0]
    assert state["exp_avg"].equal(2 * expected)
    assert state["step"] == 3


def test_checkpoint_has_no_pickle_and_its_index_stays_in_its_folder(saved):
    shards = saved.with_suffix(".shards")
    assert {path.name for path in shards.iterdir()} == {"__0_0.distcp", INDEX}
    index = shards / INDEX
    index.write_text(index.read_text().replace("__0_0.distcp", "../other"))
    with pytest.raises(ValueError, match="is not in this folder"):
        ShardReader(shards)


def flipped(shards: Path) -> None:
    data = bytearray((shards / "__0_0.distcp").read_bytes())
    offset = data.index(torch.arange(12.0).numpy().tobytes())
    data[offset + 8] ^= 255
    (shards / "__0_0.distcp").write_bytes(data)


def cut(shards: Path) -> None:
    (shards / "__0_0.distcp").write_bytes((shards / "__0_0.distcp").read_bytes()[:-100])


@pytest.mark.parametrize(
    "damage",
    [
        flipped,
        cut,
        lambda shards: (shards / "__0_0.distcp").unlink(),
        lambda shards: (shards / INDEX).unlink(),
        lambda shards: (shards / INDEX).write_text('{"w": 1}'),
    ],
)
def test_damaged_shards_are_detected(damage, saved):
    assert are_intact(saved.with_suffix(".shards"))
    damage(saved.with_suffix(".shards"))
    assert not are_intact(saved.with_suffix(".shards"))


def test_separated_tensors_return_to_their_places(mesh):
    weight = distribute_tensor(torch.ones(2), mesh)
    nested = {"a": [{1: {"x": weight, "y": 2}}, {}], "b": weight, "c": None}
    rest, tensors = separated(nested)
    assert rest == {"a": [{1: {"y": 2}}, {}], "c": None}
    assert set(tensors) == {json.dumps(["a", 0, 1, "x"]), json.dumps(["b"])}
    assert joined(rest, tensors) == nested


def run_folder(output: Path) -> RunFolder:
    (path,) = output.glob("*/*/*")
    return RunFolder(path)


def test_training_continues_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    begins, write = threading.Event(), ShardedSave._write
    found: list[list[str]] = []

    class Third(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if method_of(pl_module).counters.updates == 2:
                found.append([path.name for path in run_folder(tmp_path).checkpoints.glob("*.ckpt")])
                begins.set()

    monkeypatch.setattr(ShardedSave, "_write", lambda *given: begins.wait(60) and write(*given))
    with added_callback(Third()):
        folder = small_run(tmp_path, *SHARDED, "trainer.checkpoint_every=2", "trainer.checkpoints_kept=1")
    assert found == [[]]
    assert {path.name for path in folder.checkpoints.iterdir()} == {"update=000003.ckpt", "update=000003.shards"}


def test_shards_that_cannot_be_written_leave_the_last_checkpoint(tmp_path, monkeypatch):
    write = ShardedSave._write

    def disk_full(self: ShardedSave, *given: Any) -> None:
        if "2" in self.directory.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, *given)

    monkeypatch.setattr(ShardedSave, "_write", disk_full)
    with pytest.raises(ConfigError, match=r"cannot write .*000002.ckpt: rank 0: .*No space left") as caught:
        small_run(tmp_path, *SHARDED)
    kept = run_folder(tmp_path).checkpoints / "update=000001.ckpt"
    assert f"the last good checkpoint is {kept}; free some space and continue with resume=" in str(caught.value)
    assert newest_readable(run_folder(tmp_path).path) == (kept, [])
    assert {path.name for path in kept.parent.iterdir()} == {kept.name, "update=000001.shards"}
