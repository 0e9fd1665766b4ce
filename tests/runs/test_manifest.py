"""The manifest: everything to reproduce a run, without secrets."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from postrain.config.masking import masked
from postrain.runs.folder import RunFolder
from postrain.runs.manifest import git_state, reproduce, write_manifest


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
    names = "reproduce stand_in_for git seeds data model versions hardware config"
    assert set(manifest) == set(names.split())
