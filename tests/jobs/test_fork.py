"""`fork=RUN@UPDATE`: a run that shares the past of another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from postrain.errors import ConfigError
from postrain.jobs.replay import needs_replay, shared_past, starts
from postrain.jobs.session import TRAIN, execute
from postrain.runs.folder import RunFolder
from postrain.runs.forks import ForkPoint, settings_since
from postrain.runs.resume import saved_config
from postrain.training.first_update import checkpoint_before
from tests.training_runs import composed, final_state, records, same, shallow, small_run

SHORT = ("method.batch_size=4", "data.source.count=32", "evaluation.completions=2", "data.eval_rows=4")


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with checkpoints of its updates 1, 2 and 3."""
    return small_run(tmp_path_factory.mktemp("parent"), *shallow("sft"), *SHORT)


def fork(parent: RunFolder, output: Path, update: object, *changes: str) -> RunFolder:
    """Forks a run and returns the new folder."""
    words = [f"fork={parent.path}@{update}", f"paths.output={output}", *changes]
    execute(TRAIN, composed(words), overrides=words)
    (path,) = output.glob("*/*/*")
    return RunFolder(path)


def test_fork_without_a_change_is_the_original_bit_for_bit(parent, tmp_path):
    found = fork(parent, tmp_path, 1)
    assert records(found) == records(parent)
    assert found.samples.read() == parent.samples.read()
    assert found.held_out.read() == parent.held_out.read()
    one, other = final_state(found), final_state(parent)
    for part in ("state_dict", "optimizer_states", "postrain"):
        assert same(one[part], other[part])
    first, second = ((folder.model / "model.safetensors").read_bytes() for folder in (found, parent))
    assert first == second


def test_changed_settings_apply_from_the_next_update_on(parent, tmp_path):
    found = fork(parent, tmp_path, 2, "method.learning_rate=0.0001", "method.weight_decay=0.5", "name=slower")
    assert records(found)[:3] == records(parent)[:3]
    # The third of three updates, cosine schedule without warm-up: (1 + cos(2π/3)) / 2 = 1/4.
    assert records(found)[3]["learning_rate"] == pytest.approx(0.0001 / 4)
    groups = final_state(found)["optimizer_states"][0]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (pytest.approx(0.0001 / 4), 0.5),
        (pytest.approx(0.0001 / 4), 0.0),
    ]
    assert found.path.parts[-3] == "slower"
    known = json.loads(found.fork.read_text())
    assert (known["run"], known["update"]) == (str(parent.path.resolve()), 2)
    assert known["changes"][0].startswith("method.learning_rate: 0.0")
    assert json.loads(found.manifest.read_text())["fork"] == known
    assert known["fingerprint"] == json.loads(found.manifest.read_text())["data"]["fingerprint"]


def test_updates_without_a_checkpoint_are_repeated_with_the_old_settings(parent, tmp_path):
    thinned = RunFolder(shutil.copytree(parent.path, tmp_path / "a" / "b" / "c"))
    (thinned.checkpoints / "update=000002.ckpt").unlink()
    found = fork(thinned, tmp_path / "runs", 2, "method.learning_rate=0.0001")
    assert records(found)[:3] == records(parent)[:3]
    assert records(found)[3]["learning_rate"] == pytest.approx(0.0001 / 4)
    one, other = (
        torch.load(folder.checkpoints / "update=000002.ckpt", weights_only=True) for folder in (found, parent)
    )
    assert same(one["state_dict"], other["state_dict"])


@pytest.mark.parametrize(
    ("update", "changes", "message"),
    [
        ("4", (), r"fork: .* has made 3 updates; give at most .*@3"),
        ("", (), r"fork: expected RUN@UPDATE"),
        ("2", ("optim=sgd",), r"fork: optim\._target_: torch\.optim\.AdamW → torch\.optim\.SGD: a checkpoint holds"),
        ("2", ("adapter=lora",), r"fork: adapter\._target_: .*one model, adapter"),
        ("2", ("++method.learning_rat=1",), r"method\.learning_rat.*learning_rate"),
        ("2", ("data.path=nowhere.jsonl",), r"nowhere.jsonl"),
    ],
)
def test_refused_fork_is_one_line_and_leaves_no_folder(parent, tmp_path, update, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        fork(parent, tmp_path / "runs", update, *changes)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("runs/*/*/*"))


def test_critic_of_a_fork_is_that_of_its_checkpoint(tmp_path):
    keys = {"model": {}, "data": {}, "trainer": {}, "seed": 0}
    (tmp_path / "config.yaml").write_text(json.dumps(keys | {"method": {"critic": "shared"}}))
    with pytest.raises(ConfigError, match=r"fork: method\.critic: shared → separate: a checkpoint holds"):
        ForkPoint(RunFolder(tmp_path), 1).config({"method": {"critic": "separate"}}, ["method.critic=separate"])


def test_updates_with_earlier_settings_are_not_repeated_with_the_present_ones(parent, tmp_path):
    run = RunFolder(shutil.copytree(parent.path, tmp_path / "run"))
    run.changes.append({"update": 2, "changes": ["method.learning_rate: 0.1 → 0.2"]})
    (run.checkpoints / "update=000001.ckpt").unlink()
    line = f"cannot be repeated: settings were changed after update 2; give {run.path}@2"
    with pytest.raises(ConfigError, match=line), shared_past(ForkPoint(run, 1)):
        pass
    # With a checkpoint nothing is repeated.
    with shared_past(ForkPoint(run, 2)) as past:
        assert past is run
    run.changes.path.unlink()
    run.fork.write_text(json.dumps({"run": "runs/first", "update": 2, "changes": ["seed: 0 → 1"]}))
    with pytest.raises(ConfigError, match=f"{line} or runs/first@1"), shared_past(ForkPoint(run, 1)):
        pass


def test_fork_inherits_the_last_change_of_its_parent(parent, tmp_path):
    run = RunFolder(shutil.copytree(parent.path, tmp_path / "run"))
    config, found = saved_config(run), {}
    run.changes.append({"update": 2, "changes": ["method.learning_rate: 0.1 → 0.2"]})
    for update, seed in ((1, 0), (3, 0), (3, 1)):
        folder = RunFolder.at(tmp_path / f"{update}-{seed}")
        ForkPoint(run, update).copy_past(run, folder, {**config, "seed": config["seed"] + seed})
        found[update, seed] = settings_since(folder)
    # At 1 the parent changes to its present settings, at 2 it has done so, and at 3 the fork changes its own.
    assert found == {(1, 0): 1, (3, 0): 2, (3, 1): 3}


def test_damaged_checkpoint_is_repeated_from_an_earlier_one(parent, tmp_path):
    run = RunFolder(shutil.copytree(parent.path, tmp_path / "run"))
    (run.checkpoints / "update=000002.ckpt").write_bytes(b"damaged")
    assert needs_replay(ForkPoint(run, 2))
    (run.checkpoints / "update=x.ckpt").write_bytes(b"")
    assert starts(run) == [0, 1, 3]
    assert checkpoint_before(run, 3) == (run.checkpoints / "update=000001.ckpt", 1)
    assert checkpoint_before(run, 1) == (None, 0)
