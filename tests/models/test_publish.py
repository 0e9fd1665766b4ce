"""`postrain merge` and `postrain export` on the folder of a LoRA run: checks, cards, uploads and mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from postrain.cli import export as export_command
from postrain.cli import merge as merge_command
from postrain.models import hub, merge
from postrain.models.card import metadata
from postrain.models.export import export
from postrain.models.loading import load_causal
from tests.models.conftest import TURN, byte_tokenizer, source
from tests.models.test_adapters import logits, lora, moved

FP32 = torch.float32
CARD = """---
library_name: peft
base_model: org/base
license: mit
tags:
- postrain
- sft
datasets:
- org/rows
---

# a run

## How to load it

With PEFT.

## Held-out results

| metric | n |
|---|---|
"""


@pytest.fixture
def run(saved: Callable[..., Path], tmp_path: Path) -> Path:
    """The folder of a finished LoRA run."""
    folder = tmp_path / "runs" / "sft" / "tiny" / "run"
    policy = moved(lora().wrap(load_causal(source(saved("llama")).resolve(), dtype=FP32), head="causal"))
    export(policy, byte_tokenizer(), folder / "model", card=CARD, end_ids=[TURN])
    (folder / "manifest.json").write_text('{"model": {"name": "tiny"}}')
    sample = {"update": 0, "row": 0, "prompt": "once upon", "completion": " a time"}
    (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_merged_model_gives_the_logits_of_the_adapter(
    run: Path, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    assert merge_command.main([str(run), "--dtype", dtype]) == 0
    expected = logits(load_causal(source(run).resolve(), dtype=FP32))
    found = AutoModelForCausalLM.from_pretrained(run / "merged").eval()
    assert found.dtype == getattr(torch, dtype)
    tolerance = 1e-5 if dtype == "float32" else 3e-2
    torch.testing.assert_close(logits(found.float()), expected, rtol=0, atol=tolerance * float(expected.abs().max()))
    printed = capsys.readouterr().out
    check = json.loads((run / "merged" / "manifest.json").read_text())["merge"]
    assert check["source"] == "samples.jsonl"
    assert f"max |Δlogit| {check['max_difference']:.2g}" in printed
    text = (run / "merged" / "README.md").read_text()
    assert f"max |Δlogit| {check['max_difference']:.2g}" in text
    assert (text.count("## How to load it"), "With PEFT." in text, "## Held-out results" in text) == (1, False, True)
    known = metadata(run / "merged")
    names = ("library_name", "base_model", "license", "datasets", "tags")
    assert [known[name] for name in names] == ["transformers", "org/base", "mit", ["org/rows"], ["postrain", "sft"]]
    assert TURN in GenerationConfig.from_pretrained(run / "merged").eos_token_id  # pyright: ignore[reportOperatorIssue]


def test_merge_whose_logits_differ_is_refused_and_writes_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(merge.BOUNDS, "bfloat16", 1e-6)
    assert merge_command.main([str(run), "--dtype", "bfloat16"]) == 2
    error = capsys.readouterr().err
    assert "more than the bound of 1e-06 in bfloat16; merge in float32 (--dtype float32)" in error
    assert error.count("\n") == 1
    assert not (run / "merged").exists()


def test_export_writes_file_modelfile_card_and_manifest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_command.main([str(run), "--gguf", "Q8_0"]) == 0
    out = run / "gguf-q8_0"
    assert sorted(path.name for path in out.iterdir()) == [
        "Modelfile",
        "README.md",
        "manifest.json",
        "sft-tiny-Q8_0.gguf",
    ]
    assert "ollama create" in capsys.readouterr().out
    assert 'PARAMETER stop "<|end|>"' in (out / "Modelfile").read_text()
    assert metadata(out)["library_name"] == "gguf"
    assert json.loads((out / "manifest.json").read_text())["gguf"]["type"] == "q8_0"


def existing_folder(run: Path) -> None:
    (run / "gguf-f16").mkdir()
    (run / "merged").mkdir()


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (merge_command, ["nope"], "nope is not a run folder; name the output folder with --output DIR"),
        (merge_command, ["nano", "--out", "x"], "nano has no adapter to merge"),
        (merge_command, ["RUN", "--dtype", "int8"], "invalid choice: 'int8'"),
        (merge_command, ["RUN", "--public"], "--public has no effect without --push"),
        (merge_command, ["RUN", "--push", "name"], "--push name: expected OWNER/NAME"),
        (export_command, ["RUN"], "the following arguments are required: --gguf"),
        (export_command, ["RUN", "--gguf", "q5"], "no such type; expected one of f16, q8_0, q4_k_m"),
        (export_command, ["nope", "--gguf", "f16", "--out", "x"], "RUN=nope"),
    ],
)
def test_mistake_is_one_line_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: Any, words: list[str], message: str
) -> None:
    words = [{"RUN": str(run), "x": str(tmp_path / "x")}.get(word, word) for word in words]
    before = sorted(run.iterdir())
    assert command.main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert sorted(run.iterdir()) == before
    assert not (tmp_path / "x").exists()


def test_existing_output_folder_is_kept(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    existing_folder(run)
    assert merge_command.main([str(run)]) == 2
    assert export_command.main([str(run), "--gguf", "f16"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.endswith("exists; delete it, or name another folder with --output DIR") for line in errors] == [
        True
    ] * 2


class FakeHub:
    """The two calls of an upload, in place of HfApi."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.repositories: dict[str, dict[str, Any]] = {}

    def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        if self.refuses:
            raise OSError("403 Forbidden:\nno write access")
        self.repositories[name] = {"private": private, "files": []}
        return f"https://hub.invalid/{name}"

    def upload_folder(self, *, folder_path: Path, repo_id: str, commit_message: str) -> None:
        assert commit_message
        self.repositories[repo_id]["files"] = sorted(path.name for path in folder_path.iterdir())


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests set HF_HUB_OFFLINE."""
    monkeypatch.setattr(hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(hub, "get_token", lambda: "token")


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("words", [[], ["--public"]])
def test_push_uploads_the_folder_to_a_private_repository_unless_public(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    fake = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: fake)
    assert merge_command.main([str(run), "--push", "me/tuned", *words]) == 0
    assert "pushed  https://hub.invalid/me/tuned" in capsys.readouterr().out
    found = fake.repositories["me/tuned"]
    assert found["private"] is (words == [])
    assert {"README.md", "config.json", "manifest.json", "model.safetensors", "tokenizer.json"} <= set(found["files"])


@pytest.mark.usefixtures("online")
def test_nothing_is_pushed_unless_asked_and_without_a_token_nothing_is_merged(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "HfApi", None)
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert merge_command.main([str(run), "--push", "me/tuned"]) == 2
    assert "not logged in; run hf auth login" in capsys.readouterr().err
    assert not (run / "merged").exists()
    assert merge_command.main([str(run)]) == 0


@pytest.mark.usefixtures("online")
def test_failed_upload_keeps_the_folder_and_names_the_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub(refuses=True))
    assert merge_command.main([str(run), "--push", "me/tuned"]) == 2
    error = capsys.readouterr().err
    assert f"403 Forbidden: no write access; the folder {run}/merged is complete" in error
    assert "hf upload me/tuned" in error
    assert (run / "merged" / "model.safetensors").is_file()
