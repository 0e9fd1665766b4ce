"""The run folder: created, opened and never shared; its status, and odd or hostile contents."""

from __future__ import annotations

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from postrain import __version__
from postrain.errors import ConfigError
from postrain.jsonl import atomic_write_text, update_of
from postrain.report import write_report
from postrain.runs.folder import RunFolder, Status, config_hash
from postrain.runs.resume import check_model, resumed_config


def test_path_has_method_model_time_and_hash(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    assert folder.path.parent == tmp_path / "ppo" / "nano"
    assert folder.path.name.endswith("-0123abcd")
    assert folder.checkpoints.is_dir()
    assert folder.name == f"ppo-nano-{folder.path.name}"


def test_model_name_cannot_leave_the_base_directory(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "ppo", "org/model:../x", "0123abcd")
    assert folder.path.parent == tmp_path / "ppo" / "org-model-..-x"


def test_runs_of_the_same_second_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder.create(tmp_path, "ppo", "nano", "0123abcd").path, range(24)))
    assert len(set(made)) == 24


@pytest.mark.parametrize("base", ["/proc", "{tmp}/file"])
def test_unwritable_directory_is_a_one_line_error(tmp_path: Path, base: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"^cannot write .*ppo.nano: .*; choose another directory with paths\.output="
    ) as e:
        RunFolder.create(Path(base.format(tmp=tmp_path)), "ppo", "nano", "0123abcd")
    assert "\n" not in str(e.value)


def test_open_requires_a_folder_with_a_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^resume: there is no folder .*missing"):
        RunFolder.open(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"is not a run folder: it has no config\.yaml \(it has: notes\.txt\)"):
        RunFolder.open(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    assert RunFolder.open(str(tmp_path)).path == tmp_path


def test_status_records_each_change(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json")
    assert status.read() == {}
    status.running()
    assert status.read()["status"] == "running"
    status.failed("loss is nan")
    assert (status.read()["status"], status.read()["reason"]) == ("failed", "loss is nan")
    status.running()
    status.interrupted("SIGTERM")
    assert status.read()["status"] == "interrupted"
    status.running()
    status.done()
    assert (status.read()["status"], status.read()["reason"]) == ("done", "")
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_seconds_are_summed_over_sessions(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json")
    status.running()
    record = status.read()
    # An earlier session of 40 s; this one started 10 s ago.
    atomic_write_text(status.path, json.dumps(record | {"seconds": 40.0, "started": record["started"] - 10}))
    status.done()
    assert 50 <= status.read()["seconds"] < 60


def test_damaged_status_is_overwritten(tmp_path: Path) -> None:
    status = Status(tmp_path / "status.json")
    status.path.write_text('{"status": "run')
    assert status.read() == {}
    status.done()
    assert status.read()["status"] == "done"


def test_failed_atomic_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(OSError, match="target"):
        atomic_write_text(tmp_path / "target", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_config_hash_ignores_key_order() -> None:
    assert config_hash({"a": 1, "b": {"c": 2}}) == config_hash({"b": {"c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert len(config_hash({})) == 8


ODD = {
    "empty": b"",
    "binary": b"\0\1\xff",
    "a list": b"[1]",
    "a number": b"7",
    "deep": b"[" * 20_000,
    "deep map": b'{"a":' * 5_000,
    "a tag": b"!!python/object/apply:os.getpid []",
    "an alias": b"a: *b",
    "other keys": b"a: 1",
    "UTF-16": "a: 1".encode("utf-16"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_config_is_a_one_line_error(tmp_path: Path, kind: str) -> None:
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    folder.config.write_bytes(ODD[kind])
    with pytest.raises(ConfigError, match=r"config\.yaml (is not|cannot be read as) the config of a run") as caught:
        resumed_config(folder, {}, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [*ODD.values(), b'{"model": [1], "data": 3}', b'{"model": {"fingerprint": null}}'])
def test_odd_manifest_has_no_fingerprint_to_check(tmp_path: Path, text: bytes) -> None:
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    folder.manifest.write_bytes(text)
    check_model(folder, cast("Any", SimpleNamespace(fingerprint="f", name="nano")))


@pytest.mark.parametrize("line", [*ODD.values(), b'{"update": "x"}', b'{"update": []}', b'{"update": null, "a": 1}'])
def test_odd_records_are_skipped(tmp_path: Path, line: bytes) -> None:
    lines = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd").metrics
    lines.path.write_bytes(line + b'\n{"update": 1}\n{"update": 3}\n')
    assert [update_of(record) for record in lines.read()][-2:] == [1, 3]
    lines.rewind(2)
    assert lines.read() == [{"update": 1}]


@pytest.mark.parametrize("name", ["metrics.jsonl", "checkpoints", "model", ".run.lock", "report.html", "wandb/deep/a"])
@pytest.mark.parametrize("there", [True, False])
def test_link_out_of_a_folder_is_refused_and_not_followed(tmp_path: Path, name: str, there: bool) -> None:
    run, outside = tmp_path / "run", tmp_path / "outside"
    (run / name).parent.mkdir(parents=True)
    (run / "config.yaml").write_text("a: 1\n")
    if there:
        outside.write_text("mine")
    (run / name).symlink_to(outside)
    for opened in (RunFolder.open, write_report):
        with pytest.raises(
            ConfigError, match=rf"{Path(name).name} is a link to {outside}, out of the folder"
        ) as caught:
            opened(run)
        assert "\n" not in str(caught.value)
    assert outside.exists() == there
    assert not there or outside.read_text() == "mine"


def test_links_to_and_within_a_folder_and_to_stages_of_its_sweep_are_followed(tmp_path: Path) -> None:
    run = tmp_path / "disk" / "jobs" / "00"
    (run / "wandb").mkdir(parents=True)
    (run / "config.yaml").write_text("a: 1\n")
    (run / "wandb" / "latest").symlink_to("../config.yaml")
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    RunFolder.open(tmp_path / "runs" / "jobs" / "00")
    (run / "1-sft").symlink_to("../../shared/sft")
    with pytest.raises(ConfigError, match=r"1-sft is a link"):
        RunFolder.open(run)
    (tmp_path / "disk" / "sweep.yaml").write_text("")
    RunFolder.open(run)


def test_pipe_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: 1\n")
    os.mkfifo(tmp_path / "status.json")
    with pytest.raises(ConfigError, match=r"status\.json is neither a file nor a directory; remove it"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("record", [{"status": "interrupted"}, {"status": "interrupted", "version": "0.1.0"}])
def test_folder_of_an_earlier_version_is_refused_with_both_versions(tmp_path: Path, record: dict[str, str]) -> None:
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "status.json").write_text(json.dumps(record))
    line = rf"^resume: .* was made by postrain 0\.1\.0, and postrain {re.escape(__version__)} .* start a new run$"
    with pytest.raises(ConfigError, match=line):
        RunFolder.open(tmp_path)
