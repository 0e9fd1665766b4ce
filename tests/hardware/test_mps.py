"""Apple GPUs, without one: the rules of trainer=mps, the fallback to the CPU, and computations without float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from postrain import precision
from postrain.errors import ConfigError
from postrain.hardware import memory, mps
from postrain.hardware.collectives import whiten_globally
from postrain.hardware.trainer import Hardware
from postrain.losses.advantages import group_advantages, leave_one_out, whiten
from postrain.methods.metrics import expected_calibration_error, margin_bins
from postrain.models.scoring import CHUNK_ELEMENTS
from tests.training_runs import small_run, train_config


class NoFloat64(TorchDispatchMode):
    """Raises TypeError for operations that return float64, as PyTorch does on an Apple GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if any(isinstance(value, torch.Tensor) and value.dtype == torch.float64 for value in tree_leaves(found)):
            raise TypeError(f"{func} returns float64")
        return found


@pytest.fixture
def no_float64(monkeypatch):
    """The CPU stands in for a device without float64."""
    monkeypatch.setattr(precision, "WITHOUT_FLOAT64", {"cpu", "mps"})
    with NoFloat64():
        yield


@pytest.fixture
def apple_gpu(monkeypatch):
    """A machine with an Apple GPU, as far as PyTorch reports it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: major <= 14)


@pytest.mark.parametrize("method", ["grpo", "ppo", "reward"])
@pytest.mark.usefixtures("no_float64")
def test_training_and_its_evaluation_need_no_float64(method, tmp_path):
    words = ("method.updates=1", "method.batch_size=4", "evaluation.completions=2")
    assert small_run(tmp_path, f"method={method}", *words).result.is_file()


@pytest.mark.usefixtures("no_float64")
def test_float32_statistics_equal_those_of_float64():
    rewards_PG = torch.tensor([[1.0, 0.0, float("nan"), 0.5], [2.0, 2.0, 2.0, 2.0]])
    values_BT, mask_BT = torch.tensor([[1.0, 2.0, 5.0]]), torch.tensor([[True, True, False]])
    # Mean of the scored rewards 1, 0, 0.5 is 0.5; their deviation is 0.5; equal rewards have advantage 0.
    expected_PG = torch.tensor([[0.5, -0.5, 0.0, 0.0], [0.0] * 4])
    torch.testing.assert_close(group_advantages(rewards_PG, scale="group"), expected_PG / (0.5 + 1e-4))
    torch.testing.assert_close(group_advantages(rewards_PG, scale="none"), expected_PG)
    assert group_advantages(rewards_PG, scale="batch").isfinite().all()
    torch.testing.assert_close(leave_one_out(rewards_PG)[0], torch.tensor([0.75, -0.75, 0.0, 0.0]))
    for whitened in (whiten(values_BT, mask_BT), whiten_globally(values_BT, mask_BT)):
        torch.testing.assert_close(whitened, torch.tensor([[-1.0, 1.0, 0.0]]))
    # One pair with confidence sigmoid(2) = 0.881, predicted right: |1 − 0.881|.
    error = expected_calibration_error(margin_bins(torch.tensor([2.0])))
    assert error == pytest.approx(1 - 1 / (1 + 2.718281828**-2), rel=1e-5)


def test_mps_without_an_apple_gpu_runs_on_the_cpu_with_the_reason(capsys):
    hardware = train_config(["method=sft", "trainer=mps"]).trainer
    hardware.check()
    assert (hardware.accelerator, hardware.available, hardware.device.type) == ("mps", "cpu", "cpu")
    hardware.configure_process()
    assert capsys.readouterr().err.startswith("warning: trainer=mps: this PyTorch is built without MPS; running on the")


@pytest.mark.usefixtures("apple_gpu")
def test_mps_is_the_device_of_a_machine_with_an_apple_gpu(monkeypatch, capsys):
    hardware = Hardware(accelerator="mps")
    hardware.check()
    assert (hardware.available, hardware.device.type) == ("mps", "mps")
    hardware.configure_process()
    assert not capsys.readouterr().err
    assert hardware.device.type in CHUNK_ELEMENTS
    assert precision.widest(hardware.device) == torch.float32
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 4)
    assert memory.available_memory(hardware.device) == 6
    with pytest.raises(ConfigError, match=r"no CUDA GPU is visible to PyTorch here; use trainer=mps"):
        Hardware(accelerator="gpu").check()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"devices": 2, "strategy": "ddp"}, "an Apple GPU is one device, got 2 ranks with strategy=ddp; use"),
        ({"strategy": "fsdp"}, "an Apple GPU is one device"),
        ({"precision": "bf16"}, "trainer.precision=bf16: Apple GPUs need macOS 15 or newer for bf16; use trainer.p"),
        ({"precision": "bf16-mixed"}, "Apple GPUs need macOS 15 or newer"),
    ],
)
@pytest.mark.usefixtures("apple_gpu")
def test_settings_that_an_apple_gpu_lacks_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr(mps, "BF16_MACOS", (15, 0))
    with pytest.raises(ConfigError, match=message):
        Hardware(accelerator="mps", **changes).check()
