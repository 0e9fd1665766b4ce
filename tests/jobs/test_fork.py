"""`fork=RUN@UPDATE`: a run that shares the past of another one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from postrain.errors import ConfigError
from postrain.jobs.session import TRAIN, execute
from postrain.runs.folder import RunFolder
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
