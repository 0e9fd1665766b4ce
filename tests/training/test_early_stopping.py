"""Early stopping on a flat reward or a KL blow-up; a run that has improved and plateaus continues."""

from __future__ import annotations

import json

import pytest

from postrain.errors import ConfigError
from postrain.runs.folder import RunFolder
from postrain.training.early_stopping import EarlyStop, EarlyStopping, flat
from tests.training.conftest import FakeMethod
from tests.training_runs import records, resumed, small_run, train_config


def test_flat_compares_the_last_rewards_with_the_first():
    # Means 0.5 and 0.5.
    assert flat([0.4, 0.6, 0.6, 0.4], 2)
    # Means 0.5 and 0.55.
    assert not flat([0.4, 0.6, 0.6, 0.5], 2)
    # Fewer than 2 * size rewards, and not a multiple of size.
    assert not flat([0.4, 0.4], 2)
    assert not flat([0.4, 0.6, 0.6, 0.4, 0.1], 2)
    # Risen, then constant.
    assert not flat([0.1, 0.1, 0.9, 0.9, 0.9, 0.9], 2)
    assert flat([0.3, 0.3, 0.3, 0.3], 2)


def early_stopping(tmp_path, *, flat_updates=None, kl_above=None):
    return EarlyStopping(EarlyStop(flat_updates=flat_updates, kl_above=kl_above), RunFolder(tmp_path))


def test_mean_kl_above_the_limit_stops(tmp_path):
    callback = early_stopping(tmp_path, kl_above=1.0)
    for kl in (0.5, 1.0, 1.5, 1.0, 0.9):
        assert callback.reason() == ""
        callback._remember({"kl/exact": kl, "kl/k3": 99.0})
    # (0.5 + 1.0 + 1.5 + 1.0 + 0.9) / 5 = 0.98; with 1.1 in place of 0.5 it is 1.1.
    assert callback.reason() == ""
    callback._remember({"kl/exact": 1.1})
    assert callback.reason() == "KL to the reference 1.1 is above early_stop.kl_above=1"


@pytest.mark.parametrize(
    ("metrics", "limit", "update", "stops"),
    [
        ({"eval__kl__exact": 1.5}, 1.0, 2, True),
        ({"eval__kl__exact": 0.5}, 1.0, 2, False),
        ({"eval__kl__exact": 1.5}, None, 2, False),
        # The last update ends the run in any case.
        ({"eval__kl__exact": 1.5}, 1.0, 4, False),
        # Updates log the KL, which is averaged.
        ({"eval__kl__exact": 1.5, "kl__exact": 0.5}, 1.0, 2, False),
    ],
)
def test_kl_of_an_evaluation_stops_where_updates_log_none(tmp_path, trainer, metrics, limit, update, stops):
    callback, method = early_stopping(tmp_path, kl_above=limit), FakeMethod(updates=4, done=update - 1)
    method.step(**metrics)
    callback.on_train_batch_end(trainer, method, None, None, 0)
    callback.on_validation_end(trainer, method)
    reason = "eval/kl/exact 1.5 is above early_stop.kl_above=1 at update 2"
    assert (trainer.should_stop, method.stop_reason) == (stops, reason if stops else "")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("method=sft", "early_stop.flat_updates=2"), "flat_updates: this method has no reward; set it to null"),
        (
            ("method=online_dpo", "reward=pairwise", "reward.function=a.py:b", "early_stop.flat_updates=2"),
            "flat_updates: this reward only compares completions; set it to null",
        ),
        (("method=reward", "early_stop.kl_above=1"), "kl_above: this method generates no text"),
        (
            ("method=grpo", "early_stop.kl_above=1", "evaluation.completions=0"),
            "kl_above: this method logs no KL in training, and evaluation.completions=0; give evaluation.completions=",
        ),
    ],
)
def test_limit_on_a_metric_that_is_not_measured_is_refused(words, message):
    with pytest.raises(ConfigError, match=rf"^early_stop\.{message}"):
        train_config(words)


def test_limit_on_a_kl_that_every_update_logs_needs_no_evaluation():
    train_config(("method=grpo", "method.kl_coef=0.1", "early_stop.kl_above=1", "evaluation.completions=0"))


def test_null_limits_never_stop(tmp_path):
    callback = early_stopping(tmp_path)
    for _ in range(50):
        callback._remember({"kl/exact": 9.0, "reward/total": 0.0})
    assert callback.reason() == ""


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    words = ("method=ppo", "method.updates=9", "method.learning_rate=1e-9", "early_stop.flat_updates=2")
    return small_run(tmp_path_factory.mktemp("stopped"), *words)


def test_stopped_run_is_evaluated_exported_and_done(stopped):
    result = json.loads(stopped.result.read_text())
    updates = result["updates"]
    assert updates in (4, 6, 8)
    assert result["stopped"].endswith(f"(early_stop.flat_updates=2) at update {updates}")
    assert stopped.status.read()["status"] == "done"
    assert stopped.metrics.read()[-1]["update"] == updates
    assert stopped.metrics.read()[-1]["eval/reward/total"] == result["changes"]["eval/reward/total"][1]
    assert (stopped.model / "config.json").is_file()
    assert result["objective"] == result["changes"][result["metric"]][1]
    assert result["trainable"] <= result["parameters"]


def test_resumed_stopped_run_makes_no_further_update(stopped):
    stopped.model.rename(stopped.path / "not exported")
    files = [stopped.result, stopped.held_out.path, stopped.samples.path]
    before, results = records(stopped), [path.read_bytes() for path in files]
    resumed(stopped)
    assert records(stopped) == before
    assert [path.read_bytes() for path in files] == results
    assert (stopped.model / "config.json").is_file()


@pytest.mark.parametrize(
    ("saved", "changed_at", "stops"),
    [
        ({"stop_reason": "flat"}, None, True),
        ({"stop_reason": "flat"}, 1, True),
        ({"stop_reason": "flat"}, 2, False),
        ({"stop_reason": ""}, None, False),
        ({}, None, False),
    ],
)
def test_a_stop_lasts_until_settings_are_changed(folder, trainer, saved, changed_at, stops):
    if changed_at is not None:
        folder.changes.append({"update": changed_at, "changes": ["seed: 0 → 1"]})
    method = FakeMethod(updates=4, done=2)
    callback = EarlyStopping(EarlyStop(), folder)
    callback.on_load_checkpoint(trainer, method, saved)
    callback.on_train_start(trainer, method)
    assert trainer.should_stop is stops
    again: dict[str, str] = {}
    callback.on_save_checkpoint(trainer, method, again)
    assert again == {"stop_reason": "flat" if stops else ""}
