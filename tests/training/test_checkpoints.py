"""Checkpoints are complete or absent; a failing reward loses no update."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from postrain.errors import ConfigError, Interrupted
from postrain.runs.folder import RunFolder
from postrain.training.checkpoints import Checkpoints, newest_readable, set_aside
from postrain.training.nan_guard import NaNGuard
from tests.training.conftest import FakeMethod, FakeTrainer
from tests.training_runs import final_state, records, resumed, same, small_run

WORDS = (
    "method=grpo",
    "method.dynamic_sampling=0",
    "method.curriculum.window=[0.0,1.0]",
    "reward=function",
    f"reward.function={__name__}.brittle",
    "trainer.checkpoint_every=100",
    "evaluation.greedy=false",
)
ANSWERS: list[bool] = []
"""Whether each further call succeeds; once empty, all do."""


def brittle(completions: list[str]) -> list[float]:
    """Rewards length, or fails where ANSWERS is False."""
    if ANSWERS and not ANSWERS.pop(0):
        raise ConnectionError("the judge hung up")
    return [float(len(completion)) for completion in completions]


def test_reward_failure_in_the_third_update_loses_no_update(tmp_path):
    whole = small_run(tmp_path / "whole", *WORDS)
    # Calls: two before the first update (preflight, evaluation), then one per update.
    ANSWERS.extend([True] * 4 + [False])
    with pytest.raises(ConfigError, match="ConnectionError: the judge hung up"):
        small_run(tmp_path / "broken", *WORDS)
    (path,) = (tmp_path / "broken").glob("*/*/*")
    folder = RunFolder(path)
    assert [saved.name for saved in folder.checkpoints.iterdir()] == ["update=000002.ckpt"]
    assert folder.status.read()["status"] == "failed"
    with pytest.raises(ConfigError, match=r"sets reward\.function=\S+ \(runs this Python\); repeat it"):
        resumed(folder)
    resumed(folder, *(word for word in WORDS if word.startswith("reward.function=")))
    assert records(folder) == records(whole)
    assert same(final_state(folder)["state_dict"], final_state(whole)["state_dict"])


def saved(path: Path) -> Path:
    """A checkpoint of one tensor."""
    torch.save({"state_dict": {"weight": torch.arange(4096.0)}}, path)
    return path


def test_checkpoint_with_64_flipped_bytes_is_detected_and_skipped(folder: RunFolder) -> None:
    old = saved(folder.checkpoints / "update=000001.ckpt")
    new = saved(folder.checkpoints / "update=000002.ckpt")
    assert newest_readable(folder.path) == (new, [])
    data = bytearray(new.read_bytes())
    offset = data.index(torch.arange(4096.0).numpy().tobytes()) + 5000
    data[offset : offset + 64] = bytes(255 - byte for byte in data[offset : offset + 64])
    new.write_bytes(data)
    # torch.load does not detect it; only the checksum does.
    torch.load(new, weights_only=True)
    assert newest_readable(folder.path) == (old, [new])


def test_damaged_checkpoint_is_not_kept_instead_of_a_good_one(folder: RunFolder) -> None:
    saved(folder.checkpoints / "update=000004.ckpt")
    (folder.checkpoints / "update=000006.ckpt").write_bytes(b"PK")
    shard = folder.checkpoints / "update=000006.shards" / "__0_0.distcp"
    for content in ("first", "second"):
        # The same update may be damaged twice.
        shard.parent.mkdir()
        shard.write_text(content)
        (folder.checkpoints / "update=000006.ckpt").write_bytes(b"PK")
        _, (damaged,) = newest_readable(folder.path)
        assert set_aside(damaged) == folder.checkpoints / "update=000006.ckpt.damaged"
    Checkpoints(folder, NaNGuard(folder), every=1, keep=1).save(cast("Any", Writer(saved)), 5)
    with folder.locked():  # which removes what a killed process left
        assert sorted(path.name for path in folder.checkpoints.iterdir()) == [
            "update=000005.ckpt",
            "update=000006.ckpt.damaged",
            "update=000006.shards.damaged",
        ]
    assert (folder.checkpoints / "update=000006.shards.damaged" / shard.name).read_text() == "second"
    assert newest_readable(folder.path) == (folder.checkpoints / "update=000005.ckpt", [])


@pytest.mark.parametrize("data", [b"", b"PK", b"\0" * 1000, b"PK\3\4" + b"\xff" * 500])
def test_invalid_checkpoint_file_is_reported_as_damaged(folder: RunFolder, data: bytes) -> None:
    (folder.checkpoints / "update=000002.ckpt").write_bytes(data)
    with pytest.raises(ConfigError, match="checkpoints are damaged"):
        newest_readable(folder.path)


class Writer(FakeTrainer):
    """Writes a checkpoint with a given function."""

    def __init__(self, write: Callable[[Path], object]) -> None:
        super().__init__()
        self.save_checkpoint = write
        self.strategy = cast("Any", SimpleNamespace(barrier=lambda name: None))
        self.world_size = 1


def disk_full(path: Path) -> None:
    path.write_bytes(b"PK")
    raise OSError(errno.ENOSPC, "No space left on device")


def disk_full_in_torch(path: Path) -> None:
    path.write_bytes(b"PK")
    raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed\nmore")


def interrupted(path: Path) -> None:
    path.write_bytes(b"PK")
    raise Interrupted(2)


@pytest.mark.parametrize("write", [disk_full, disk_full_in_torch, lambda path: path.write_bytes(b"PK"), interrupted])
def test_failed_write_leaves_no_file_and_removes_no_checkpoint(folder: RunFolder, write: Any) -> None:
    kept = [saved(folder.checkpoints / f"update=00000{update}.ckpt") for update in (1, 2)]
    callback = Checkpoints(folder, NaNGuard(folder), every=1, keep=1)
    with pytest.raises((ConfigError, Interrupted)) as caught:
        callback.save(cast("Any", Writer(write)), 3)
    assert sorted(folder.checkpoints.iterdir()) == kept
    if isinstance(caught.value, ConfigError):
        remedy = f"the last good checkpoint is {kept[1]}; free some space and continue with resume={folder.path}"
        assert str(caught.value).endswith(remedy)
        assert "\n" not in str(caught.value)


def test_broken_model_is_not_saved(folder: RunFolder) -> None:
    kept = saved(folder.checkpoints / "update=000001.ckpt")
    method, guard = FakeMethod(updates=3, done=1), NaNGuard(folder)
    method.weight = nn.Parameter(torch.zeros(2))
    callback = Checkpoints(folder, guard, every=1, keep=1)
    trainer = cast("Any", Writer(saved))
    callback.on_train_batch_start(trainer, method, None, 0)
    nn.init.constant_(method.weight, float("nan"))
    callback.on_exception(trainer, method, ConfigError("a reward failed"))
    method.step()
    with pytest.raises(ConfigError, match=r"weight contains nan at update 2; the last good checkpoint is .*000001"):
        callback.on_train_batch_end(trainer, method, None, None, 0)
    assert [*folder.checkpoints.iterdir()] == [kept]
