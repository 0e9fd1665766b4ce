"""A run that cannot go on stops with one line."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from postrain.callbacks.guards import Guards, not_finite, stop_line
from postrain.folder import RunFolder
from postrain.types import ConfigError


def test_nan_names_update_rows_and_checkpoint(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    method = make_method(done=4)
    method.current_rows = tuple(range(10, 20))
    (folder.checkpoints / "update=4.ckpt").write_text("")
    method.step(loss=math.nan, grad_norm=math.inf, reward__total=math.nan)
    with pytest.raises(ConfigError) as caught:
        Guards(folder).on_train_batch_end(trainer, method, None, None, 0)
    line = str(caught.value)
    assert line.startswith("loss is nan, grad_norm is inf at update 5, data rows 10, 11, 12, 13, 14, 15, 16, 17, ...;")
    assert "update=4.ckpt" in line
    assert "\n" not in line


def test_finite_numbers_pass(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    method = make_method()
    method.step(loss=1e30, grad_norm=0.0)
    Guards(folder).on_train_batch_end(trainer, method, None, None, 0)


def test_an_unwatched_metric_may_be_nan() -> None:
    assert not_finite({"reward/mood": math.nan, "loss": 1.0}) == {}


def test_without_rows_and_checkpoint() -> None:
    line = stop_line(1, {"loss": math.nan}, (), None)
    assert line.startswith("loss is nan at update 1; no checkpoint had been written yet")
