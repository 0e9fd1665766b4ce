"""NaN, infinity and exploding weights stop a run with a one-line error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from postrain.errors import ConfigError
from postrain.runs.folder import RunFolder
from postrain.training.nan_guard import BrokenModel, NaNGuard, check_finite, max_abs, non_finite_metrics
from tests.training.conftest import FakeMethod


def test_nan_error_names_rows_and_checkpoint(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    method = make_method(done=4)
    method.current_rows = tuple(range(10, 20))
    (folder.checkpoints / "update=4.ckpt").write_text("")
    method.step(loss=math.nan, grad_norm=math.inf, reward__total=math.nan)
    with pytest.raises(ConfigError) as caught:
        NaNGuard(folder).on_train_batch_end(trainer, method, None, None, 0)
    line = str(caught.value)
    assert line.startswith("loss is nan, grad_norm is inf at update 5, data rows 10, 11, 12, 13, 14, 15, 16, 17, ...;")
    assert "update=4.ckpt" in line
    assert "\n" not in line


def test_finite_numbers_pass(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    method = make_method()
    method.step(loss=1e30, grad_norm=0.0)
    NaNGuard(folder).on_train_batch_end(trainer, method, None, None, 0)


def test_unwatched_metric_may_be_nan() -> None:
    assert non_finite_metrics({"reward/mood": math.nan, "loss": 1.0}) == {}


def test_nan_error_without_rows_and_checkpoint(folder: RunFolder, trainer: Any) -> None:
    method = FakeMethod()
    method.step(loss=math.nan)
    with pytest.raises(BrokenModel, match=r"^loss is nan at update 1; no checkpoint was written yet; lower method\."):
        NaNGuard(folder).on_train_batch_end(trainer, method, None, None, 0)


class Learner(FakeMethod):
    """A policy with a frozen layer, and a value head initialized to 0."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.policy[1].requires_grad_(False)
        self.critic = nn.Linear(4, 1)
        for parameter in self.parameters():
            nn.init.constant_(parameter, 0.01)
        nn.init.zeros_(self.critic.weight)


BREAKS = {
    "nan": (lambda weight: weight.fill_(math.nan), "contains nan"),
    "infinity": (lambda weight: weight[..., -1].fill_(-math.inf), "contains inf"),
    "growth": (lambda weight: weight.add_(0.01).mul_(1e6), "has grown from"),
    "one weight": (lambda weight: weight[..., -1].fill_(-1e4), "has grown from"),
}


@pytest.mark.parametrize("name", ["policy.0.weight", "policy.0.bias", "critic.weight"])
@pytest.mark.parametrize("kind", BREAKS)
def test_broken_weight_stops_the_run_with_zero_loss_and_gradient(
    folder: RunFolder, trainer: Any, name: str, kind: str
) -> None:
    method, guard = Learner(), NaNGuard(folder)
    guard.on_train_start(trainer, method)
    for _ in range(2):
        method.step(loss=0.0, grad_norm=0.0)
        guard.on_train_batch_end(trainer, method, None, None, 0)
    method.step(loss=0.0, grad_norm=0.0)
    breaks, expected = BREAKS[kind]
    with torch.no_grad():
        breaks(method.get_parameter(name))
    with pytest.raises(BrokenModel, match=rf"{name}.* at update 3; no checkpoint") as caught:
        guard.on_train_batch_end(trainer, method, None, None, 0)
    assert expected in str(caught.value)
    # The record of the broken update is written.
    assert [record["update"] for record in folder.metrics.read()] == [3]
    with pytest.raises(BrokenModel):
        guard.check(method)


def test_large_optimizer_step_is_not_an_explosion(folder: RunFolder, trainer: Any) -> None:
    method, guard = Learner(), NaNGuard(folder)
    guard.on_train_start(trainer, method)
    method.step(loss=1.0)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(1.0)
    guard.on_train_batch_end(trainer, method, None, None, 0)


def test_broken_weights_replace_the_error_they_caused(folder: RunFolder, trainer: Any) -> None:
    method, guard = Learner(), NaNGuard(folder)
    guard.on_train_start(trainer, method)
    with pytest.raises(RuntimeError, match="index"), guard.explaining_errors(method):
        raise RuntimeError("index out of range")
    nn.init.constant_(method.critic.weight, math.nan)
    with pytest.raises(BrokenModel, match=r"critic\.weight contains nan"), guard.explaining_errors(method):
        raise RuntimeError("index out of range")


def test_non_finite_initial_model_is_refused_also_in_frozen_parameters() -> None:
    method = Learner()
    check_finite(method, "model=mine")
    nn.init.constant_(method.get_parameter("policy.1.weight"), math.inf)
    with pytest.raises(ConfigError, match=r"^model=mine: the weights of policy\.1\.weight contain inf; give another"):
        check_finite(method, "model=mine")


def test_max_abs_handles_all_types_and_shapes() -> None:
    tensors = {
        "a": torch.tensor([[1.0, -3.0]]),
        "b": torch.tensor(2.0, dtype=torch.bfloat16),
        "c": torch.tensor([1.0, math.nan], dtype=torch.float64),
        "empty": torch.zeros(0),
        "quantized": torch.zeros(4, dtype=torch.uint8),
    }
    assert str(max_abs(tensors)) == "{'a': 3.0, 'b': 2.0, 'c': nan}"
