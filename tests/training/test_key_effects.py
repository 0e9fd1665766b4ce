"""Differences of two configs and their effects, on an update that is a formula, and one real update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.training.first_update import Gap, UpdateTrace, trace_update
from postrain.training.key_effects import AROUND, NOTHING, Difference, differences, key_effects, with_key_of, with_value
from tests.training_runs import SMALL, train_config

A = {
    "method": {"_target_": "m.GRPO", "scale": 1.0, "kl_coef": 0.0, "kl": 3.0, "rate": 0.1, "size": 8, "minibatches": 1},
    "seed": 0,
    "name": "a",
    "evaluation": {"every": 20},
}


def trace(config: Mapping[str, Any]) -> UpdateTrace:
    """gradient = scale · (1, 0) + kl_coef · kl · (0, 1), step = −rate · gradient; `size` changes the samples."""
    method = config["method"]
    if method["size"] % method["minibatches"]:
        raise ConfigError("method.minibatches must divide method.size")
    gradient = torch.tensor([method["scale"], method["kl_coef"] * method["kl"]])
    return UpdateTrace(
        gradient={"w": gradient},
        step={"w": -method["rate"] * gradient},
        loss=0.0,
        rows=str(config["seed"]),
        samples=str(method["size"]),
        first_step=str(method["minibatches"]),
        optimizer_steps=1,
    )


def effects(**changed: Any) -> dict[str, Any]:
    b = {**A, "method": {**A["method"], **changed}}
    found = key_effects(A, b, [*differences(A, b)], trace, trace(A))
    return {one.difference.key.removeprefix("method."): one for one in found}


def test_gap_has_relative_change_norm_ratio_and_cosine():
    # a = (3, 4), b = (4, 3): |b − a| = √2, |a| = |b| = 5, cosine 24/25
    found = Gap.between({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([4.0, 3.0])})
    assert found is not None
    assert (found.relative, found.norm_ratio, found.cosine) == pytest.approx((2**0.5 / 5, 1.0, 24 / 25))
    assert Gap.between({"w": torch.zeros(2)}, {"w": torch.zeros(3)}) is None


@pytest.mark.parametrize("odd", [float("nan"), float("inf")])
def test_gap_to_a_vector_that_is_not_finite_is_infinite_and_has_no_cosine(odd):
    for a, b in (([3.0, 4.0], [odd, 4.0]), ([odd, 4.0], [3.0, 4.0]), ([0.0, 0.0], [odd, 0.0])):
        found = Gap.between({"w": torch.tensor(a)}, {"w": torch.tensor(b)})
        assert found is not None
        assert found.relative == math.inf
        assert math.isnan(found.cosine)
    assert effects(scale=odd)["scale"].acts_on == "the loss"


def test_key_that_b_does_not_have_is_deleted_and_not_set_to_null():
    a = {**A, "method": {**A["method"], "options": {"epsilon": 1.0, "rest": 2}}}
    b = {**a, "method": {**A["method"], "options": {"rest": 2}}, "fork": "run@2"}
    (found,) = differences(a, b)
    assert found.key == "method.options.epsilon"
    given: list[Mapping[str, Any]] = []
    key_effects(a, b, [found], lambda config: given.append(config["method"]["options"]) or trace(config), trace(a))
    assert given[0] == {"rest": 2}
    # Set back in B, it has the value of A again.
    assert with_key_of(b, found.key, a)["method"]["options"] == {"rest": 2, "epsilon": 1.0}


def test_differences_leave_out_names_and_take_components_as_one_key():
    b = with_value({**A, "name": "b", "evaluation": {"every": 5}}, "method.rate", 0.2)
    assert [one.key for one in differences(A, b)] == ["method.rate", "evaluation.every"]
    assert [one.is_around for one in differences(A, b)] == [False, True]
    other = {**A, "method": {"_target_": "m.RLOO", "scale": 9.0}}
    (one,) = differences(A, other)
    assert (one.key, one.shown()) == ("method", ("GRPO", "RLOO"))
    assert not Difference("method.checkpointing", 0, 1).key.startswith(AROUND)


def test_effects_are_sorted_by_the_change_of_the_gradient_and_name_where_keys_act():
    found = effects(scale=1.5, rate=0.2, kl_coef=0.1)
    # |Δg|/|g|: scale 0.5, kl_coef 0.1 · 3 / 1 = 0.3, rate 0
    assert [*found] == ["scale", "kl_coef", "rate"]
    assert [found[key].gradient.relative for key in found] == pytest.approx([0.5, 0.3, 0.0])
    assert [found[key].acts_on for key in found] == ["the loss", "the loss", "the optimizer step"]
    # The step doubles: |Δ' − Δ| / |Δ| = 1.
    assert found["rate"].step.relative == pytest.approx(1.0)


def test_samples_and_minibatches_are_told_from_the_loss():
    found = effects(size=4, minibatches=2, scale=2.0)
    assert (found["size"].acts_on, found["scale"].acts_on) == ("the samples", "the loss")


def test_keys_without_an_effect_alone_are_tested_together():
    # The estimator has an effect only with the coefficient of B; without it, none.
    assert effects(kl_coef=0.1, kl=5.0)["kl"].acts_on == "only together with others"
    assert effects(scale=2.0, kl=5.0)["kl"].acts_on == NOTHING


def test_a_key_that_cannot_be_changed_alone_has_the_reason():
    found = effects(size=9, minibatches=3)
    assert found["minibatches"].acts_on == "only with others: method.minibatches must divide method.size"
    assert found["size"].acts_on == "the samples"


def test_step_of_plain_sgd_is_the_rate_times_the_gradient():
    words = [
        *SMALL,
        "method=sft",
        "optim=sgd",
        "method.learning_rate=0.01",
        "method.warmup=0",
        "method.schedule=constant",
    ]
    config = train_config([*words, "method.schedule=constant", "method.max_grad_norm=1e9", "evaluation.completions=0"])
    found = trace_update(config)
    assert found.optimizer_steps == 1
    for name, gradient in found.gradient.items():
        assert torch.allclose(found.step[name], -0.01 * gradient, atol=1e-6)
