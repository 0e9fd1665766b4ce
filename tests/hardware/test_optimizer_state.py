"""Optimizer states keep their parameters when their groups change; tests/hardware/test_ranks.py resumes runs."""

import torch
from torch import nn

from postrain.hardware.optimizer_state import by_name, grouped_names, regrouped


def test_state_follows_its_parameters_into_other_groups():
    saved = {
        "state": {0: {"exp_avg": 0.1}, 1: {"exp_avg": 0.2}, 3: {"exp_avg": 0.4}},
        "param_groups": [{"lr": 1.0, "params": [0, 3]}, {"lr": 2.0, "params": [1]}],
    }
    order, groups = ["wte", "bias", "frozen", "proj"], [["proj"], ["wte"], ["bias"]]
    named = by_name(saved, order, groups)
    assert named["state"] == {"wte": {"exp_avg": 0.1}, "bias": {"exp_avg": 0.2}, "proj": {"exp_avg": 0.4}}
    assert named["param_groups"] == [
        {"lr": 1.0, "params": ["proj"]},
        {"lr": 1.0, "params": ["wte"]},
        {"lr": 2.0, "params": ["bias"]},
    ]
    assert regrouped(saved, order, groups) == {
        "state": {1: {"exp_avg": 0.1}, 2: {"exp_avg": 0.2}, 0: {"exp_avg": 0.4}},
        "param_groups": [{"lr": 1.0, "params": [0]}, {"lr": 1.0, "params": [1]}, {"lr": 2.0, "params": [2]}],
    }


def test_grouped_names_are_those_of_the_optimizer():
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.SGD([{"params": matrices}, {"params": rest}], lr=0.1)
    assert grouped_names(model, optimizer) == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]
