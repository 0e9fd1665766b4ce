"""Float32 master weights of bf16 parameters: small steps arrive, and state and resume are exact."""

import copy
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from postrain.methods.master_weights import MASTER, MasterWeights
from postrain.methods.optim import make_optimizer
from postrain.runs.folder import RunFolder
from tests.training_runs import final_state, records, resumed, same, small_run


class Constant(nn.Module):
    """Parameters whose gradient is 1 everywhere: AdamW moves each by the learning rate at every step."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.full((2, 3), value, dtype=torch.bfloat16))
        self.full = nn.Parameter(torch.full((3,), value))

    def steps(self, optimizer: torch.optim.Optimizer, count: int, scale: float = 1.0) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            ((self.low.sum() + self.full.sum()) * scale).backward()
            optimizer.step()


def adamw(module: nn.Module, lr: float = 1e-6, **options) -> torch.optim.Optimizer:
    return make_optimizer(module, partial(torch.optim.AdamW, fused=True), lr=lr, weight_decay=0.0, **options)


def test_a_thousand_small_steps_arrive_in_bf16():
    # 1 − 1000 · 1e-6 = 0.999. bf16 has a spacing of 2⁻⁸ = 0.0039 below 1, so that 4000 steps arrive at 255/256.
    model = Constant()
    optimizer = adamw(model)
    model.steps(optimizer, 1000)
    master = optimizer.state[model.low][MASTER]
    assert torch.equal(master, model.full.expand(2, 3))
    assert model.full.tolist() == pytest.approx([0.999] * 3, abs=2e-5)  # each step rounds to a multiple of 2⁻²⁴
    assert torch.equal(model.low, master.bfloat16())
    model.steps(optimizer, 3000)
    assert torch.equal(model.low, torch.full((2, 3), 255 / 256, dtype=torch.bfloat16))


def test_without_master_weights_small_steps_are_lost():
    model = Constant()
    model.steps(adamw(model, master_weights=False), 4000)
    assert torch.equal(model.low, torch.ones(2, 3, dtype=torch.bfloat16))


def test_master_weights_equal_float32_training_with_the_same_gradients():
    torch.manual_seed(0)
    low, full = (nn.Module() for _ in range(2))
    start = torch.randn(4, 4).bfloat16()
    low.weight, full.weight = nn.Parameter(start.clone()), nn.Parameter(start.float())
    optimizers = [adamw(low, lr=1e-3), adamw(full, lr=1e-3)]
    for _ in range(20):
        gradient = torch.randn(4, 4).bfloat16().float()
        low.weight.grad, full.weight.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert torch.equal(optimizers[0].state[low.weight][MASTER], full.weight)
    assert torch.equal(low.weight, full.weight.bfloat16())


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.AdamW, fused=True),
        torch.optim.SGD,
        torch.optim.Adafactor,
        torch.optim.Adagrad,  # creates its state at construction
    ],
)
def test_a_loaded_state_continues_bit_for_bit(make):
    model = Constant()
    optimizer = make_optimizer(model, make, lr=1e-4, weight_decay=0.0)
    model.steps(optimizer, 3)
    other = copy.deepcopy(model)
    saved = copy.deepcopy(optimizer.state_dict())
    resumed = make_optimizer(other, make, lr=1e-4, weight_decay=0.0)
    resumed.load_state_dict(saved)
    model.steps(optimizer, 3, scale=0.5)
    other.steps(resumed, 3, scale=0.5)
    first, second = (one.state_dict()["state"] for one in (optimizer, resumed))
    assert first[0][MASTER].dtype == torch.float32
    assert torch.equal(first[0][MASTER], second[0][MASTER])
    assert {key: float(value.double().sum()) for key, value in first[0].items()} == {
        key: float(value.double().sum()) for key, value in second[0].items()
    }
    assert torch.equal(model.low, other.low)
    assert torch.equal(model.full, other.full)


def test_a_state_without_master_weights_keeps_the_weights():
    model = Constant()
    direct = adamw(model, lr=1e-2, master_weights=False)
    model.steps(direct, 2)
    optimizer = adamw(model, lr=1e-2)
    optimizer.load_state_dict(direct.state_dict())
    before = model.low.float().clone()
    model.steps(optimizer, 1)
    assert torch.allclose(optimizer.state[model.low][MASTER], before - 1e-2, atol=1e-3)


def test_weights_changed_by_other_code_are_kept():
    model = Constant()
    optimizer = adamw(model)
    model.steps(optimizer, 10)
    with torch.no_grad():
        model.low[0] = 3.0
    model.steps(optimizer, 10)
    assert optimizer.state[model.low][MASTER][:, 0].tolist() == pytest.approx([3.0 - 1e-5, 1.0 - 2e-5], abs=1e-6)


def test_float32_parameters_need_no_master_weights():
    model = Constant().float()
    assert isinstance(adamw(model), torch.optim.AdamW)
    assert isinstance(adamw(Constant()), MasterWeights)


def test_gradients_accumulate_in_float32():
    # In bf16, 256 + 1 = 256: the sum of 256 and four ones would stay 256.
    model = Constant()
    adamw(model)
    for scale in (256.0, 1.0, 1.0, 1.0, 1.0):
        (model.low.sum() * scale).backward()
    assert model.low.grad is not None
    if hasattr(model.low, "grad_dtype"):
        assert torch.equal(model.low.grad, torch.full((2, 3), 260.0))


def test_a_resumed_run_in_bf16_equals_an_uninterrupted_one(tmp_path):
    words = ("method=sft", "trainer.precision=bf16", "evaluation.completions=0")
    whole = small_run(tmp_path / "whole", *words)
    killed = RunFolder(shutil.copytree(whole.path, tmp_path / Path(*whole.path.parts[-3:])))
    for path in sorted(killed.checkpoints.glob("*.ckpt"))[1:]:
        path.unlink()
    shutil.rmtree(killed.model)
    resumed(killed)
    one, other = final_state(killed), final_state(whole)
    assert {values[MASTER].dtype for values in one["optimizer_states"][0]["state"].values()} == {torch.float32}
    assert all(same(one[name], other[name]) for name in ("state_dict", "optimizer_states"))
    assert records(killed) == records(whole)
