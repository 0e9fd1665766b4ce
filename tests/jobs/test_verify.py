"""`postrain verify`: honest runs give no alarm; a changed number, text, weight or row is named."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import postrain as pt
from postrain.cli import verify as command
from postrain.errors import ConfigError
from postrain.jobs.findings import Findings
from postrain.jobs.replay import starts, threads_of
from postrain.jobs.verify import Region, choose_regions, differences, re_execute, verify
from postrain.jobs.verify_records import check_consistency
from postrain.runs.folder import RunFolder
from postrain.runs.manifest import hardware, versions
from tests.training_runs import one_layer, shallow, small_run

ROWS = [{"prompt": f"Tom saw {n} dogs.", "completion": f"Mia saw {n} cats."} for n in range(24)]
SHORT = ("method.batch_size=4", "evaluation.completions=2", "data.eval_rows=4", "evaluation.every=1")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on a file of rows, with checkpoints and evaluations of updates 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("honest")
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    words = [word for word in shallow("sft") if not word.startswith("data")]
    return small_run(folder / "runs", *words, "data=jsonl", f"data.path={rows}", *SHORT, "~data.source")


@pytest.fixture
def run(honest: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run that a test may change."""
    return RunFolder(shutil.copytree(honest.path, tmp_path / "runs" / "sft" / "one" / "copy"))


def verified(run: RunFolder, updates: int = 1, seed: int = 0) -> dict[str, Any]:
    return verify(run, updates=updates, regions=1, seed=seed, tell=lambda _: None)


def change(path: Path, update: int, edit: Callable[[dict[str, Any]], None]) -> None:
    """Changes the first record of an update in a file of records."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    edit(next(record for record in records if record["update"] == update))
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def seed_of(run: RunFolder, first: int) -> int:
    """A seed that chooses the region of one update after the checkpoint of `first`."""
    return next(
        seed for seed in range(99) if choose_regions(run, 3, 1, 1, random.Random(seed)) == [Region(first, first + 1)]
    )


def test_honest_run_is_verified_and_gets_a_receipt(run, capsys):
    # The message of another version is not a number of the run.
    run.diagnostics.append({"update": 2, "rule": "rare", "title": "Rare", "text": "Reworded.", "stops": False})
    assert command.main([str(run.path), "--updates", "2", "--evaluation", "--seed", str(seed_of(run, 1))]) == 0
    receipt = json.loads((run.path / "verify.json").read_text())
    assert (receipt["verdict"], receipt["comparison"], receipt["mismatches"]) == ("verified", "bit for bit", [])
    # From the start 1 and 2, from the checkpoints of 1 and 2 also 3.
    assert receipt["coverage"] == {"re_executed": 2, "could_be_chosen": 3, "updates": 3}
    weights = sum(value.numel() for value in load_file(run.model / "model.safetensors").values())
    assert receipt["compared"]["weights of the exported model"] == weights
    # The weights and two moments of AdamW in two checkpoints, besides settings and steps.
    assert receipt["compared"]["weights and optimizer states"] > 6 * weights
    assert receipt["notes"] == []
    assert receipt["compared"]["the repeated evaluation"] > 0
    assert "re-executed: updates 2 to 3 (2 of 3 updates" in capsys.readouterr().out


def test_run_on_rows_given_from_python_is_verified(tmp_path):
    """Its rows count from 1, as the lines of the file from which they are read again."""
    model, tokenizer = pt.load_model(one_layer())
    run = pt.SFT(model, tokenizer, data=ROWS, updates=2, batch_size=4).fit(output=tmp_path, report=False)
    assert {record["row"] for record in RunFolder(run.path).samples.read()} <= {*range(1, 25)}
    assert verified(RunFolder(run.path))["mismatches"] == []


def test_changes_in_a_region_are_named_by_file_and_update(run, capsys):
    def raise_loss(record: dict[str, Any]) -> None:
        record["loss"] *= 1 + 1e-6

    def other_text(record: dict[str, Any]) -> None:
        record["completion"] += " and"

    change(run.metrics.path, 2, raise_loss)
    change(run.samples.path, 2, other_text)
    path = run.checkpoints / "update=000002.ckpt"
    state = torch.load(path, weights_only=True)
    next(iter(state["state_dict"].values())).view(-1)[7] += 1e-6
    torch.save(state, path)
    weights = load_file(run.model / "model.safetensors")
    next(iter(weights.values())).view(-1)[3] += 1e-6
    save_file(weights, run.model / "model.safetensors", {"format": "pt"})
    assert command.main([str(run.path), "--updates", "1", "--seed", str(seed_of(run, 1))]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("mismatch: ")]
    assert [line.split(": ")[1] for line in lines] == [
        "model/model.safetensors against the last checkpoint",
        "metrics.jsonl, update 2",
        "samples.jsonl, update 2",
        "checkpoints/update=000002.ckpt",
    ]


def test_changed_data_row_is_found(run, honest):
    rows = honest.path.parents[3] / "rows.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace("Mia saw 5 cats", "Mia saw 6 cats"))
    try:
        found = verified(run, seed=seed_of(run, 2))
    finally:
        rows.write_text(text)
    assert found["verdict"] == "mismatch"
    assert found["compared"]["held-out rows of the final model"] > 0
    assert any("data.fingerprint" in line and "the rows or their encoding" in line for line in found["mismatches"])


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("held_out.jsonl", lambda r: r["totals"].__setitem__(0, 9.0), "held_out.jsonl, update 3: rows of .* have mean"),
        ("held_out.jsonl", lambda r: r.pop("totals"), "held_out.jsonl, update 3: .* has no totals and counts"),
        ("held_out.jsonl", lambda r: r["counts"].__setitem__(0, "x"), "update 3: .* has no totals and counts"),
        ("held_out.jsonl", lambda r: r["totals"].__setitem__(0, "inf"), "rows of .* have mean inf, logged"),
        ("metrics.jsonl", lambda r: r.update(tokens=1), r"checkpoints/update=000003.ckpt: tokens is \d+, not 1"),
        ("metrics.jsonl", lambda r: r.update({"eval/loss": 0.5}), "held_out.jsonl, update 3: rows of loss .*0.5"),
        ("metrics.jsonl", lambda r: r.update(update=4), "metrics.jsonl: the record of update 3 is missing"),
    ],
)
def test_records_that_contradict_each_other_are_found_without_re_execution(run, name, edit, message):
    change(run.path / name, 3, edit)
    found = Findings()
    check_consistency(found, run)
    assert any(re.search(message, line) for line in found.mismatches), found.mismatches


def test_metric_that_is_nan_in_all_records_is_no_contradiction(run):
    def nan_row(record: dict[str, Any]) -> None:
        assert record["metric"] == "loss"
        record["totals"][0] = "nan"

    change(run.held_out.path, 3, nan_row)
    change(run.metrics.path, 3, lambda record: record.update({"eval/loss": "nan"}))
    result = json.loads(run.result.read_text())
    result["changes"]["eval/loss"][1] = "nan"
    run.result.write_text(json.dumps(result))
    found = Findings()
    check_consistency(found, run)
    assert found.mismatches == []


def test_failed_re_execution_is_an_error_and_contradicts_no_record(run, monkeypatch):
    def fails(*_: Any, **__: Any) -> RunFolder:
        raise ConfigError("the disk is full")

    monkeypatch.setattr("postrain.jobs.verify.replay", fails)
    with pytest.raises(ConfigError, match=r"verify: updates 1 to 2 of .* cannot be re-executed: the disk is full"):
        re_execute(Findings(), run, Region(0, 2), [])
    # A contradiction of the records is reported nevertheless.
    found = Findings(mismatches=["metrics.jsonl: one"])
    re_execute(found, run, Region(0, 2), [])
    assert (found.mismatches, found.notes) == (
        ["metrics.jsonl: one"],
        ["updates 1 to 2: cannot be re-executed: the disk is full"],
    )


def test_receipt_that_cannot_be_written_is_a_note(run):
    (run.path / "verify.json").mkdir()
    assert command.written(run, {}).startswith(f"note: no receipt: cannot write {run.path / 'verify.json'}: ")


def test_updates_before_a_change_of_settings_are_not_re_executed(run):
    assert starts(run) == [0, 1, 2, 3]
    run.changes.append({"update": 2, "changes": ["method.learning_rate: 0.1 → 0.2"]})
    assert starts(run) == [2, 3]


def test_completions_before_a_change_of_settings_are_not_scored_again(run):
    # A row that only the held-out rows of the earlier settings have.
    change(run.samples.path, 1, lambda record: record.update(row=10**6))
    assert any(
        "row 1000000 is not a held-out prompt" in line for line in verified(run, seed=seed_of(run, 2))["mismatches"]
    )
    run.changes.append({"update": 2, "changes": ["data.eval_rows: 8 → 4"]})
    assert verified(run)["mismatches"] == []


def test_region_ends_before_a_session_with_other_threads(run):
    manifest = json.loads(run.manifest.read_text())
    later = {"update": 2, "hardware": {"threads": 7}}
    run.manifest.write_text(json.dumps({**manifest, "sessions": [later]}))
    # Checkpoints of updates 1, 2 and 3; from the start and from 1, three updates would end after the last one.
    assert choose_regions(run, 3, 3, 9, random.Random(0)) == [Region(0, 2), Region(1, 2), Region(2, 3)]
    before = torch.get_num_threads()
    for update, threads in ((1, manifest["hardware"]["threads"]), (2, 7)):
        with threads_of(run, update):
            assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before


def test_other_hardware_or_versions_are_compared_within_a_tolerance():
    manifest = {"hardware": hardware(), "versions": versions(), "config": {"trainer": {"accelerator": "cpu"}}}
    assert differences(manifest) == []
    other = {**manifest, "versions": {**versions(), "torch": "1.0"}, "hardware": {**hardware(), "cpu": "abacus"}}
    assert [line.split(",")[0] for line in differences(other)] == ["cpu was abacus", "torch was 1.0"]
    resumed = {**manifest, "sessions": [{**other, "update": 4}, {**other, "update": 6}]}
    assert [line.split(",")[0] for line in differences(resumed)] == ["cpu was abacus", "torch was 1.0"]
    # 1 % of the larger number, and 1e-4 around 0.
    found = Findings(exact=False)
    assert found.same(1.0, 1.009)
    assert not found.same(1.0, 1.02)
    assert found.same(0.0, 5e-5)
    assert found.same("one", "other")
    assert not Findings().same(1.0, 1.0 + 1e-9)
