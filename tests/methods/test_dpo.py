"""DPO on tiny models: worked losses and gradients, independence of micro-batches, and refused settings."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch

from postrain.data.kinds.preference import Pairs
from postrain.errors import ConfigError
from postrain.losses.dpo_variants import LOSSES, RANKED
from postrain.methods.dpo import RunningMean, weights_of
from postrain.methods.metrics import combine
from tests.methods.builders import flat_gradient, float64_model, make_method, pairs, plain_logps, sequence_logps
from tests.tiny import tiny_model

CUTS = [[[0, 1, 2, 3, 4, 5, 6]], [[3], [1, 6], [0, 2, 5, 4]], [[6], [5], [4], [3], [2], [1], [0]]]
"""Seven pairs in one, three and seven micro-batches."""


def log_ratios(policy, reference, batch: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-ratios of chosen and rejected completions, [B] each, one forward pass per row."""
    sides = (batch.chosen, batch.rejected)
    chosen, rejected = (sequence_logps(policy, side) - sequence_logps(reference, side).detach() for side in sides)
    return chosen, rejected


def test_initial_loss_is_ln_2_with_the_gradient_of_half_beta_times_the_margin():
    policy, batch = float64_model(), pairs(5)
    method = make_method("dpo", policy, beta=0.3)
    loss = method.loss_sum(method.prepare(batch)).total
    # −ln σ(0) = ln 2 for each of the 5 pairs
    assert loss.item() / 5 == pytest.approx(log(2), abs=1e-12)
    # d/dθ −ln σ(β Δ) = −β σ(−β Δ) ∇Δ = −β/2 (∇ log π(chosen) − ∇ log π(rejected)) at Δ = 0
    expected = (
        0.3
        / 2
        * flat_gradient(policy, (sequence_logps(policy, batch.rejected) - sequence_logps(policy, batch.chosen)).sum())
    )
    assert torch.allclose(flat_gradient(policy, loss), expected, atol=1e-10)


def test_dpo_loss_of_an_updated_policy_is_equation_7():
    policy, reference, batch = float64_model(0), float64_model(1), pairs(4)
    method = make_method("dpo", policy, reference=reference, beta=0.1)
    chosen, rejected = log_ratios(policy, reference, batch)
    expected = -torch.log(1 / (1 + torch.exp(-0.1 * (chosen - rejected)))).sum()
    found = method.loss_sum(method.prepare(batch))
    assert found.total.item() == pytest.approx(expected.item())
    metrics = combine(found.metrics)
    assert metrics["reward/chosen"] == pytest.approx(0.1 * chosen.mean().item())
    assert metrics["reward/rejected"] == pytest.approx(0.1 * rejected.mean().item())
    assert metrics["margin"] == pytest.approx(0.1 * (chosen - rejected).mean().item())
    assert metrics["accuracy"] == pytest.approx((chosen > rejected).double().mean().item())
    assert metrics["log_ratio/chosen"] == pytest.approx(chosen.mean().item())
    assert metrics["log_ratio/rejected"] == pytest.approx(rejected.mean().item())


def test_ipo_uses_log_ratios_per_token():
    policy, reference, batch = float64_model(0), float64_model(1), pairs(4)
    method = make_method("ipo", policy, reference=reference, beta=0.1)
    chosen, rejected = log_ratios(policy, reference, batch)
    sizes = [torch.tensor([int(mask.sum()) for mask in side.supervised]) for side in (batch.chosen, batch.rejected)]
    # (l_c / |c| − l_r / |r| − 1 / (2 · 0.1))²
    expected = ((chosen / sizes[0] - rejected / sizes[1] - 5) ** 2).sum()
    assert method.loss_sum(method.prepare(batch)).total.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_independent_of_micro_batch_size(loss):
    policy, batch = float64_model(0), pairs(7)
    method = make_method(
        "dpo", policy, reference=float64_model(1), loss=loss, label_smoothing=0.1 if loss == "exo" else 0.0
    )
    prepared, found = method.prepare(batch), []
    for cut in CUTS:
        total = torch.stack([method.loss_sum(prepared.select(group)).total for group in cut]).sum()
        found.append((total.item(), flat_gradient(policy, total)))
    for total, gradient in found[1:]:
        assert total == pytest.approx(found[0][0])
        assert torch.allclose(gradient, found[0][1], atol=1e-9)


@pytest.mark.parametrize("loss", sorted(RANKED))
def test_rank_partners_come_from_the_whole_batch(loss):
    policy, reference, batch = float64_model(0), float64_model(1), pairs(7)
    method = make_method("dpo", policy, reference=reference, loss=loss, beta=0.2)
    prepared = method.prepare(batch)
    total = torch.stack([method.loss_sum(prepared.select([index])).total for index in range(7)]).sum()
    if loss == "aot":
        up = (sequence_logps(policy, batch.chosen) - sequence_logps(policy, batch.rejected)).sort().values
        down = (
            (sequence_logps(reference, batch.chosen) - sequence_logps(reference, batch.rejected)).detach().sort().values
        )
    else:
        up, down = (side.sort().values for side in log_ratios(policy, reference, batch))
    whole = -torch.nn.functional.logsigmoid(0.2 * (up - down)).sum()
    # matching by rank changes the loss of these pairs
    paired = make_method("dpo", policy, reference=reference, loss="sigmoid", beta=0.2)
    assert abs(paired.loss_sum(paired.prepare(batch)).total.item() - whole.item()) > 1e-3
    assert total.item() == pytest.approx(whole.item())
    assert torch.allclose(flat_gradient(policy, total), flat_gradient(policy, whole), atol=1e-9)


def test_loss_of_a_mixture_is_the_weighted_sum_of_its_losses():
    policy, reference, batch = float64_model(0), float64_model(1), pairs(5)

    def total(loss) -> torch.Tensor:
        method = make_method("dpo", policy, reference=reference, loss=loss)
        return method.loss_sum(method.prepare(batch)).total

    mixed = total({"sigmoid": 0.8, "hinge": 0.2})
    assert mixed.item() == pytest.approx(0.8 * total("sigmoid").item() + 0.2 * total("hinge").item())
    assert weights_of("hinge") == {"hinge": 1.0}
    assert total({"hinge": 1.0}).item() == total("hinge").item()


def test_sft_term_is_per_token():
    policy, batch = float64_model(0), pairs(5)
    plain, with_sft = (make_method("dpo", policy, reference=float64_model(1), sft_coef=coef) for coef in (0.0, 0.5))
    added = with_sft.loss_sum(with_sft.prepare(batch)).total - plain.loss_sum(plain.prepare(batch)).total
    per_token = torch.stack([logps.mean() for logps in plain_logps(policy, batch.chosen)])
    assert added.item() == pytest.approx(-0.5 * per_token.sum().item())


def test_ld_alpha_0_counts_only_the_common_length():
    policy, batch = float64_model(0), pairs(6)
    method = make_method("dpo", policy, reference=float64_model(1), beta=0.1, ld_alpha=0.0)
    expected = 0.0
    for index in range(6):
        pair = batch.select([index])
        common = min(int(side.supervised[0].sum()) for side in (pair.chosen, pair.rejected))
        policy_c, policy_r = (plain_logps(policy, side)[0][:common].sum() for side in (pair.chosen, pair.rejected))
        ref_c, ref_r = (plain_logps(float64_model(1), side)[0][:common].sum() for side in (pair.chosen, pair.rejected))
        expected -= torch.nn.functional.logsigmoid(0.1 * (policy_c - ref_c - policy_r + ref_r)).item()
    assert method.loss_sum(method.prepare(batch)).total.item() == pytest.approx(expected)


def test_reference_free_dpo_uses_reference_log_probabilities_of_0():
    policy, batch = float64_model(0), pairs(4)
    method = make_method("dpo", policy, beta=0.1, reference_free=True)
    expected = -torch.nn.functional.logsigmoid(
        0.1 * (sequence_logps(policy, batch.chosen) - sequence_logps(policy, batch.rejected))
    )
    found = method.loss_sum(method.prepare(batch))
    assert found.total.item() == pytest.approx(expected.sum().item())
    assert not any("log_ratio/" in name or "log_ratio" in name for name in found.metrics)
    assert not method.needs_reference()


def test_bco_keeps_a_running_mean_of_the_rewards():
    batch = pairs(6)
    settings = {"loss": {"sigmoid": 1.0, "bco": 1.0}, "beta": 0.1, "bco_momentum": 0.75}
    method = make_method("dpo", float64_model(0), reference=float64_model(1), **settings)
    prepared = method.prepare(batch)
    chosen, rejected = log_ratios(float64_model(0), float64_model(1), batch)
    mean = 0.1 * (chosen.mean() + rejected.mean()).item() / 2
    # Mean rewards m, then 2m: running means m and (¾ · ¼ · m + ¼ · 2m) / (1 − (¾)²) = 0.6875 / 0.4375 · m.
    for scale, expected in ((1, mean), (2, 0.6875 / 0.4375 * mean)):
        method.beta = 0.1 * scale
        method.accumulated = {}
        for minibatch in method.minibatches(prepared):
            for cut in CUTS[1]:
                method.accumulate(method.loss_sum(minibatch.select([index for index in cut if index < 6])).metrics)
        assert method.shift.value == pytest.approx(expected)
    resumed = make_method("dpo", float64_model(0), reference=float64_model(1), **settings)
    resumed.load_state(method.state())
    assert resumed.shift == method.shift


def test_initial_log_ratios_that_are_not_0_are_refused_unless_the_reference_is_separate():
    method = make_method("dpo", tiny_model(seed=0), reference=tiny_model(seed=1))
    method.loss_sum(method.prepare(pairs(3)))  # a separate reference may differ
    method.components = replace(method.components, separate_reference=False)
    with pytest.raises(ConfigError, match=r"^reference: before the first update .*, expected 0") as e:
        method.loss_sum(method.prepare(pairs(3)))
    assert "\n" not in str(e.value)
    method.counters.optimizer_steps = 1
    method.loss_sum(method.prepare(pairs(3)))


@pytest.mark.parametrize("loss", ["hinge", "ipo", "apo_zero", "bco", "discopop"])
def test_label_smoothing_is_refused_where_it_has_no_effect(loss):
    with pytest.raises(ConfigError, match=rf"^method\.label_smoothing=0\.1 has no effect on method\.loss={loss}; .*$"):
        make_method("dpo", float64_model(), loss=loss, label_smoothing=0.1)
    make_method("dpo", float64_model(), loss={loss: 0.5, "sigmoid": 0.5}, label_smoothing=0.1)


def test_exo_needs_label_smoothing():
    with pytest.raises(ConfigError, match=r"^method\.label_smoothing=0: exo .*$"):
        make_method("dpo", float64_model(), loss={"exo": 1.0, "sigmoid": 1.0})


def test_running_mean_begins_with_its_first_value():
    # momentum 0.9, values 5 and 2: (0.9 · 0.5 + 0.1 · 2) / (1 − 0.81) = 0.65 / 0.19
    assert RunningMean().value == 0
    one = RunningMean().after(5.0, 0.9)
    assert one.value == pytest.approx(5.0)
    assert one.after(2.0, 0.9).value == pytest.approx(0.65 / 0.19)
    assert RunningMean().after(5.0, 1.0).value == 0
