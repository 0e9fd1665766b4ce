"""Checks on resume: the same rows, and the date of the first start in chat templates."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from postrain.config import old_names
from postrain.config.schema import load_target
from postrain.config.tree import instantiate, parse, settings
from postrain.data.audit import Audit
from postrain.data.kinds.steps import StepLayout
from postrain.data.rendering import clock_at
from postrain.errors import ConfigError
from postrain.runs.context import write_config
from postrain.runs.folder import RunFolder
from postrain.runs.resume import check_data, differing, saved_config
from postrain.training.config import TrainConfig
from tests.data.helpers import UNMARKED, byte_tokenizer, write_lines
from tests.training_runs import composed, final_state, records, resumed, same, small_run, train_config

DATED = "{{ strftime_now('%d %b %Y') }}" + UNMARKED


def audit(path, eval_path, *, template: str = UNMARKED) -> Audit:
    """The audit of two files."""
    data = instantiate(composed([f"data.path={path}", f"data.eval_path={eval_path}", "method=sft"])["data"])
    settings = {"kind": "Demonstration", "context": 64, "batch_size": 1, "updates": 1, "seed": 0}
    return data.prepare(tokenizer=byte_tokenizer(template=template), **settings)


@pytest.fixture
def files(tmp_path):
    """Training rows and held-out rows."""
    return tuple(
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {n}", "completion": "b"} for n in range(4)])
        for name in ("train", "eval")
    )


@pytest.fixture
def folder(tmp_path, files) -> RunFolder:
    """A run that started with these rows."""
    made = RunFolder(tmp_path / "run")
    made.path.mkdir()
    made.manifest.write_text(json.dumps({"data": audit(*files).to_dict()}, default=str))
    return made


def test_relative_paths_of_a_run_are_those_of_the_directory_it_started_in(tmp_path, monkeypatch):
    folder, here = RunFolder(tmp_path / "run"), tmp_path / "elsewhere"
    for path in (folder.path, here):
        path.mkdir()
    for name in ("rows.jsonl", "score.py", "both.jsonl", "elsewhere/both.jsonl", "linear", "held", "mine"):
        (tmp_path / name).write_text("")
    config = {
        "data": {"path": ["rows.jsonl", "both.jsonl", "none.jsonl"], "eval_path": {"easy": "held"}},
        "method": {"schedule": "linear"},
        "name": "mine",
        "reward": {"function": "score.py:mine", "name": "length"},
        "paths": {"output": "run"},
    }
    folder.config.write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    folder.manifest.write_text(json.dumps({"started_in": str(tmp_path)}))
    monkeypatch.chdir(here)
    assert saved_config(folder) == {
        "data": {
            "path": [f"{tmp_path}/rows.jsonl", "both.jsonl", "none.jsonl"],
            "eval_path": {"easy": f"{tmp_path}/held"},
        },
        "method": {"schedule": "linear"},
        "name": "mine",
        "reward": {"function": f"{tmp_path}/score.py:mine", "name": "length"},
        "paths": {"output": "run"},
    }
    monkeypatch.chdir(tmp_path)
    assert saved_config(folder) == config


def test_run_resumes_with_unchanged_rows(folder, files):
    check_data(folder, audit(*files))


@pytest.mark.parametrize("changed", [0, 1])
def test_changed_training_or_held_out_rows_are_refused(folder, files, changed):
    text = files[changed].read_text()
    files[changed].write_text(text.replace('"completion": "b"', '"completion": "c"', 1))
    with pytest.raises(
        ConfigError, match=r"started with data fingerprint \w{16}, and .* has \w{16}: .*allow_change="
    ) as e:
        check_data(folder, audit(*files))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("manifest", [None, "{}", '{"data": "text"}', '{"data": {}}'])
def test_run_without_a_recorded_fingerprint_resumes(folder, files, manifest):
    folder.manifest.unlink() if manifest is None else folder.manifest.write_text(manifest)
    check_data(folder, audit(*files))


def test_template_date_after_resume_is_that_of_the_first_start(tmp_path, files):
    made = RunFolder(tmp_path)
    made.status.running()
    began = made.status.first_started()
    stored = json.loads(made.status.path.read_text())
    made.status.path.write_text(json.dumps(stored | {"began": "2024-02-29T23:59:00"}))
    made.status.running()
    made.status.interrupted("SIGTERM")
    assert made.status.first_started() == datetime(2024, 2, 29, 23, 59)
    with clock_at(began):
        today = audit(*files, template=DATED).fingerprint
    with clock_at(made.status.first_started()):
        then = audit(*files, template=DATED).fingerprint
        assert then == audit(*files, template=DATED).fingerprint
    assert today != then


def test_moved_class_paths_of_earlier_versions_are_resolved(tmp_path):
    old = {"data": {"steps": {"_target_": "postrain.data.steps.StepLayout"}}, "seed": 0}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(old)))
    assert load_target(saved_config(RunFolder(tmp_path))["data"]["steps"]["_target_"]) is StepLayout
    assert all(map(load_target, old_names.CLASSES.values()))


def test_config_of_a_run_in_epochs_has_no_updates(tmp_path):
    folder = RunFolder(tmp_path)
    config = train_config(["method=sft", "method.num_train_epochs=2"])
    config.check()
    write_config(folder, config)
    saved = saved_config(folder)
    assert ("updates" in saved["method"], saved["method"]["num_train_epochs"]) == (False, 2)
    again = parse(saved, TrainConfig)
    again.check()
    assert differing(saved, settings(again)) == []
    # A config that was created in Python; the updates of its method are later computed from the rows.
    created = replace(config)
    created.check()
    created.method.updates, created.method.num_train_epochs = 7, None
    assert settings(created)["method"].keys() == saved["method"].keys()
    assert settings(created)["method"]["num_train_epochs"] == 2
    # As earlier versions wrote it.
    folder.config.write_text("method: {updates: 100, num_train_epochs: 2}")
    assert saved_config(folder) == {"method": {"num_train_epochs": 2}}
    folder.config.write_text("method: {updates: 100, num_train_epochs: null}")
    assert saved_config(folder) == {"method": {"updates": 100, "num_train_epochs": None}}


def test_pissa_run_resumes_bit_for_bit(tmp_path):
    """The base weights, from which PiSSA subtracts its adapter, and the reference adapter are computed again."""
    words = ("method=dpo", "adapter=pissa", "adapter.r=4", "method.precompute_ref_log_probs=false", "method.updates=2")
    whole = small_run(tmp_path, *words)
    killed = RunFolder(shutil.copytree(whole.path, tmp_path / "again" / Path(*whole.path.parts[-2:])))
    sorted(killed.checkpoints.glob("*.ckpt"))[-1].unlink()
    shutil.rmtree(killed.model)
    resumed(killed)
    assert records(killed) == records(whole)
    assert same(final_state(killed)["state_dict"], final_state(whole)["state_dict"])
    first, second = ((folder.model / "adapter_model.safetensors").read_bytes() for folder in (whole, killed))
    assert first == second
