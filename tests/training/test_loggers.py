"""The real tracker packages, offline: one run per job, closed with its status, samples as a table."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,  # pyright: ignore[reportAttributeAccessIssue] - made at run time
)
from tensorboard.summary.writer import event_file_writer

from postrain.errors import ConfigError
from postrain.runs.folder import RunFolder, check_contained
from postrain.training.logger_media import as_text, log_histograms, log_table
from postrain.training.loggers import NoTracker, TensorBoard, Tracker, Wandb, discard_after

OFFLINE = Wandb(project="test", entity=None, online=False, timeout=5)


def make(tracker: Tracker, folder: RunFolder) -> list[Any]:
    return tracker.build(run_dir=folder.path, run_name=folder.name, group="sweep", config={"seed": 1})


def test_no_tracker_builds_no_logger(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    assert make(NoTracker(), folder) == []
    NoTracker().close("done")


def test_tensorboard_discards_the_steps_that_a_resumed_run_repeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A run resumes in another process at a later second. Files of the same second are read in the text order of their
    # numbers, where the tenth writer of this process would precede the ninth.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    loggers = make(TensorBoard(flush_seconds=1), folder)
    for step in (1, 2, 3):
        loggers[0].log_metrics({"reward/total": float(step)}, step=step)
    loggers[0].finalize("failed")

    resumed = make(TensorBoard(flush_seconds=1), folder)  # From a checkpoint of update 2.
    discard_after(resumed, 2)
    resumed[0].log_metrics({"reward/total": 30.0}, step=3)
    log_table(resumed, "samples", ["prompt", "mood"], [["a | <b>", 0.5]], 3)
    log_histograms(resumed, {"reward": torch.tensor([1.0, 2.0, math.nan]), "none": torch.tensor([])}, 3)
    resumed[0].finalize("success")

    events = EventAccumulator(str(folder.path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("reward/total")] == [(1, 1.0), (2, 2.0), (3, 30.0)]
    text = events.Tensors("samples/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| a &#124; &lt;b&gt; | 0.5 |" in text
    assert [event.histogram_value.num for event in events.Histograms("reward")] == [2.0]
    assert events.Tags()["histograms"] == ["reward"]


def test_hparams_tab_has_settings_and_headline_metrics(tmp_path: Path) -> None:
    method = {"_target_": "postrain.methods.dpo.DPO", "beta": 0.1, "loss": {"sigmoid": 1}, "name": None}
    config = {"method": method, "model": {"name": None, "path": "here"}, "seed": 1, "reward": None}
    (logger,) = TensorBoard(flush_seconds=1).build(run_dir=tmp_path, run_name="x", group=None, config=config)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = events.PluginTagToContent("hparams")
    experiment = HParamsPluginData.FromString(found["_hparams_/experiment"]).experiment
    assert [info.name.tag for info in experiment.metric_infos] == ["loss", "accuracy", "eval/accuracy"]
    logged = HParamsPluginData.FromString(found["_hparams_/session_start_info"]).session_start_info.hparams
    assert set(logged) == {"(job)", "(model)", "seed", "method.beta", "method.loss.sigmoid", "method.name"}
    assert (logged["(model)"].string_value, logged["method.beta"].number_value) == ("here", 0.1)


def test_two_wandb_jobs_in_one_process_make_two_runs(tmp_path: Path) -> None:
    folders = [RunFolder.create(tmp_path, "ppo", "nano", name) for name in ("aaaaaaaa", "bbbbbbbb")]
    mode = os.environ.get("WANDB_MODE")
    for number, folder in enumerate(folders):
        (logger,) = make(OFFLINE, folder)
        assert logger.experiment.id == folder.name
        assert (logger.experiment.group, logger.experiment.name) == ("sweep", folder.name)
        logger.log_metrics({"loss": float(number)}, step=1)
        log_table([logger], "samples", ["prompt", "mood"], [["a", 0.5], ["b", None]], 1)
        log_histograms([logger], {"reward": torch.tensor([1.0, 2.0])}, 1)
        if number == 0:
            continue  # The first job crashed without closing its run.
        OFFLINE.close("done")
    assert wandb.run is None
    assert os.environ.get("WANDB_MODE") == mode
    for folder in folders:
        assert len(list((folder.path / "wandb").glob(f"offline-run-*/run-{folder.name}.wandb"))) == 1
        assert list((folder.path / "wandb").rglob("media/table/samples_*.table.json"))
        # The report, resume and verify refuse a folder with links that lead out of it.
        links = [path for path in folder.path.rglob("*") if path.is_symlink()]
        assert links
        assert all(path.resolve().is_relative_to(folder.path.resolve()) for path in links)
        check_contained(folder.path)
    OFFLINE.close("done")  # Closing twice is allowed.


def test_online_without_a_key_is_refused_without_a_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    folder = RunFolder.create(tmp_path, "ppo", "nano", "0123abcd")
    with pytest.raises(ConfigError, match=r"^logger\.online: no W&B key is configured; run `wandb login` or use"):
        make(Wandb(project="test", entity=None, online=True, timeout=5), folder)
    assert "Enter your choice" not in capfd.readouterr().err


def test_table_for_trackers_escapes_cells() -> None:
    assert as_text(["a|b", "c"], [["<i>\nx", 0.12345], [None, 3]]) == (
        "| a&#124;b | c |\n| --- | --- |\n| &lt;i&gt;<br>x | 0.123 |\n|  | 3 |\n"
    )
