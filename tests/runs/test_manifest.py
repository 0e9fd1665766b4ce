"""The manifest: everything to reproduce a run, without secrets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from postrain.config.masking import masked
from postrain.runs.folder import RunFolder
from postrain.runs.manifest import git_state, hardware, reproduce, write_manifest
from postrain.runs.sessions import sessions, thread_changes, threads_after, with_changes


def test_secrets_are_masked_by_their_key() -> None:
    config = {
        "hub_token": "s3cret", "logger": {"api_key": "s3cret", "keys": ["a"]}, "list": [{"password": "s3cret"}],
        "client_secret": "", "max_new_tokens": 64, "token_budget": 4096,
        "eos_token": "<|end|>", "tokenizer": "path", "key": None,
    }  # fmt: skip
    assert masked(config) == {
        "hub_token": "***", "logger": {"api_key": "***", "keys": ["a"]}, "list": [{"password": "***"}],
        "client_secret": "", "max_new_tokens": 64, "token_budget": 4096,
        "eos_token": "<|end|>", "tokenizer": "path", "key": None,
    }  # fmt: skip


def test_reproduce_command_is_quoted_and_masked() -> None:
    overrides = ["method=ppo", "data.path=my file.jsonl", "+logger.api_key=s3cret"]
    assert reproduce(overrides) == "python train.py method=ppo 'data.path=my file.jsonl' '+logger.api_key=***'"


def test_git_state_has_commit_and_dirty_flag(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init", "-q")
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-q", "-m", "first")
    state = git_state(tmp_path)
    assert state is not None
    assert (len(state["commit"]), state["dirty"]) == (40, False)
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path) == {"commit": state["commit"], "dirty": True}


def test_manifest_has_all_entries_without_secrets(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    write_manifest(
        folder,
        config={"seed": 1, "logger": {"token": "s3cret"}, "rate": float("inf")},
        overrides=["method=ppo"],
        seeds={"seed": 1},
        data={"fingerprint": "f00"},
        model={"name": "nano", "source": "bundled", "fingerprint": "beef"},
        stand_in_for="gpt2",
    )
    text = folder.manifest.read_text()
    manifest = json.loads(text)
    assert "s3cret" not in text.replace("0123abcd", "")
    assert manifest["stand_in_for"] == "gpt2"
    assert manifest["reproduce"] == "python train.py method=ppo"
    assert manifest["config"]["rate"] == "inf"
    assert manifest["versions"]["torch"]
    assert manifest["hardware"]["cores"] >= 1
    names = "reproduce started_in stand_in_for git seeds data model versions hardware config"
    assert set(manifest) == set(names.split())


def test_resumed_run_keeps_the_first_session_and_adds_its_own(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    known: Any = {"seeds": {}, "data": {"fingerprint": "f00"}, "model": {}}
    write_manifest(folder, config={"seed": 1}, overrides=["method=ppo"], **known)
    first = json.loads(folder.manifest.read_text())
    other = {"git": {"commit": "c0de"}, "versions": {"torch": "1.0"}, "hardware": {"cpu": "abacus", "threads": 7}}
    folder.manifest.write_text(json.dumps(first | other))
    for update, word in ((4, "hub_token=s3cret"), (6, "allow_change=true")):
        write_manifest(folder, config={"seed": 2}, overrides=["resume=a", word], update=update, **known)
    found = json.loads(folder.manifest.read_text())
    assert {name: found[name] for name in ("reproduce", *other)} == {"reproduce": "python train.py method=ppo", **other}
    assert found["config"] == {"seed": 2}
    now = {name: first[name] for name in other}
    assert found["sessions"] == [
        {"update": 4, "command": "python train.py resume=a 'hub_token=***'", **now},
        {"update": 6, "command": "python train.py resume=a allow_change=true", **now},
    ]
    assert [one["update"] for one in with_changes(found)] == [6]


def test_sessions_are_those_that_made_the_updates() -> None:
    def begun(update: int, threads: int) -> dict[str, Any]:
        return {"update": update, "hardware": {"threads": threads}}

    # From update 6 a run was killed before a checkpoint, and resumed again.
    manifest = {"hardware": {"threads": 1}, "sessions": [begun(4, 1), begun(6, 2), begun(6, 3), {"update": "odd"}, 1]}
    assert [(one["update"], one["hardware"]["threads"]) for one in sessions(manifest)] == [(0, 1), (4, 1), (6, 3)]
    assert [threads_after(manifest, update) for update in (0, 3, 5, 6, 9)] == [1, 1, 1, 3, 3]
    assert thread_changes(manifest) == [6]
    # The first session was killed before a checkpoint. An earlier version wrote no sessions.
    assert [one["update"] for one in sessions({"hardware": 1, "sessions": [begun(0, 2)]})] == [0]
    assert (threads_after({"sessions": [begun(0, 2)]}, 0), threads_after({"hardware": 1}, 0)) == (2, None)


def test_memory_of_the_manifest_is_the_limit_of_the_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "memory.max").write_text(str(3 * 2**28))
    monkeypatch.setattr("postrain.processor.CGROUP", tmp_path)
    assert hardware()["memory_gib"] == 0.8  # 0.75 GiB, one decimal.
