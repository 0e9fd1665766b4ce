"""Schedule and optimizers: worked numbers, and a step and a resume of every option."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from postrain.errors import ConfigError
from postrain.methods.muon import Muon
from postrain.methods.optim import lr_factor, make_optimizer
from tests.tiny import VOCABULARY, tiny_model
from tests.training_runs import CONF, same, train_config


def test_learning_rate_factor_warms_up_and_decays():
    # 10 updates, 20 % warm-up: ½ and 1, then down to 1/8 in 8 updates
    linear = [lr_factor("linear", update, 10, 0.2) for update in range(10)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert lr_factor("cosine", 6, 10, 0.2) == pytest.approx(0.5)
    assert [lr_factor("constant", update, 10, 0.0) for update in (0, 9)] == [1.0, 1.0]


class Policy(nn.Module):
    """A tiny language model."""

    def __init__(self) -> None:
        super().__init__()
        self.model = tiny_model("llama")

    def step(self, optimizer: torch.optim.Optimizer, seed: int) -> None:
        optimizer.zero_grad()
        ids = torch.randint(0, VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(seed))
        self.model(ids, labels=ids).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "optim").glob("*.yaml")))
def test_every_optimizer_takes_a_step_and_resumes_bit_for_bit(name, dtype):
    if name == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    config = train_config(["method=sft", f"optim={name}"])
    make = config.make_optimizer or partial(torch.optim.AdamW, fused=True)
    policy = Policy().to(dtype)
    optimizer = make_optimizer(policy, make, lr=1e-2, weight_decay=0.1)
    policy.step(optimizer, 0)
    start = Policy().to(dtype)
    moved = [not torch.equal(a, b) for a, b in zip(policy.parameters(), start.parameters(), strict=True)]
    assert any(moved)
    other = copy.deepcopy(policy)
    resumed = make_optimizer(other, make, lr=1e-2, weight_decay=0.1)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, its in ((policy, optimizer), (other, resumed)):
        one.step(its, 1)
    assert same(policy.state_dict(), other.state_dict())
    assert same(optimizer.state_dict(), resumed.state_dict())


def test_muon_updates_the_matrices_of_blocks_and_adamw_the_rest():
    policy = Policy()
    optimizer = make_optimizer(policy, Muon, lr=1e-2, weight_decay=0.1)
    by_muon = {p for group in optimizer.param_groups if group["use_muon"] for p in group["params"]}
    names = {name for name, parameter in policy.named_parameters() if parameter in by_muon}
    # Seven projections in each of two blocks; embedding, head and norms are AdamW's.
    assert len(names) == 14
    assert all(".layers." in name and name.endswith("_proj.weight") for name in names)
    policy.step(optimizer, 0)
    assert {tuple(sorted(state)) for p, state in optimizer.state.items() if p in by_muon} == {("momentum_buffer",)}
    assert sum("exp_avg" in state for state in optimizer.state.values()) == len([*policy.parameters()]) - 14


def test_a_step_of_muon_has_the_size_of_a_step_of_adamw():
    # AdamW's first step is ±lr; Muon's is 0.2 lr √32 times an orthogonal 16 × 32 matrix, of RMS 1/√32.
    policy, start = Policy(), Policy()
    policy.step(make_optimizer(policy, Muon, lr=1e-3, weight_decay=0.0), 0)
    weights = [one.model.model.layers[0].mlp.up_proj.weight for one in (policy, start)]
    rms = float((weights[0] - weights[1]).detach().square().mean().sqrt())
    assert 0.1e-3 < rms < 0.3e-3


def test_muon_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="optim=muon: no trained matrix is in a transformer block"):
        make_optimizer(nn.Linear(2, 2), Muon, lr=1e-3, weight_decay=0.0)


def test_the_weight_decay_of_an_optimizer_is_the_methods():
    with pytest.raises(ConfigError, match=r"optim\.weight_decay: set by the run; set method\.weight_decay"):
        train_config(["method=sft", "optim=muon", "optim.weight_decay=0.1"])
