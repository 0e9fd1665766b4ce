"""Data sets loaded by `datasets`: a local directory with the Hub's layout, and an unreachable Hub."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

from postrain.data import files
from postrain.data.sources import Hub
from postrain.errors import ConfigError
from tests.data.helpers import write_lines

ROWS = [{"prompt": f"p{number}", "chosen": "a", "rejected": "b"} for number in range(3)]


@pytest.fixture
def local(tmp_path, monkeypatch):
    import datasets.config  # noqa: PLC0415 - slow import, only for these tests

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_lines(tmp_path / "set" / "train.jsonl", ROWS)
    write_lines(tmp_path / "set" / "test.jsonl", ROWS[:1])
    return str(tmp_path / "set")


def source(repo: str, **changes) -> Hub:
    settings = {"subset": None, "train_split": "train", "eval_split": None, "revision": None}
    return Hub(repo=repo, **(settings | changes))


def test_hub_split_becomes_rows(local):
    loaded = source(local, eval_split="test").load(eval_rows=9)
    assert [row.values for row in loaded.train.rows] == ROWS
    assert loaded.held_out is not None
    assert [row.values for row in loaded.held_out.rows] == ROWS[:1]
    assert loaded.train.where(1).endswith("set (train), row 1")
    assert source(local).load(eval_rows=9).held_out is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_split": "valid"}, "the split valid cannot be read"),
        ({"subset": "other"}, "the split train of the subset other"),
    ],
)
def test_missing_hub_split_is_a_one_line_error(local, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        source(local, **changes).load(eval_rows=9)
    assert "\n" not in str(caught.value)


def test_offline_error_names_data_set_cache_and_remedies():
    with pytest.raises(ConfigError) as caught:
        source("nobody/nothing").load(eval_rows=9)
    message = str(caught.value)
    assert "data set nobody/nothing: not in the cache " in message
    assert "HF_HUB_OFFLINE is set" in message
    assert "run once with a network and copy that cache, or give a file with data=jsonl" in message


def test_unanswered_hub_request_times_out(monkeypatch):
    monkeypatch.setattr(files, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(files.HfApi, "dataset_info", lambda *_, **__: time.sleep(1))
    monkeypatch.setattr(files.constants, "is_offline_mode", lambda: False)
    with pytest.raises(ConfigError, match=r"the Hub cannot be reached \(no answer within 0 s\)"):
        source("nobody/nothing").load(eval_rows=9)


def test_data_set_missing_on_the_hub_is_an_error(monkeypatch):
    def dataset_info(*_, **__):
        response: Any = SimpleNamespace(headers={}, request=None)
        raise RepositoryNotFoundError("404", response=response)

    monkeypatch.setattr(files.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(files.constants, "is_offline_mode", lambda: False)
    with pytest.raises(ConfigError, match="the Hub has no data set nobody/nothing"):
        source("nobody/nothing").load(eval_rows=9)
