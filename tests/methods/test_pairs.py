"""Scores and metrics shared by pair methods; ORPO, SimPO and CPO."""

from __future__ import annotations

from math import exp, log

import pytest
import torch

from postrain.losses.preference import log_odds, odds_ratio
from postrain.methods.metrics import combine
from postrain.methods.pairs import PairScores, lengths, mean_logps, pair_metrics, score_pairs
from postrain.models.scoring import Scores
from tests.methods.builders import flat_gradient, float64_model, make_method, pairs, plain_logps, sequence_logps

WITHOUT_REFERENCE = ["orpo", "simpo", "cpo"]


def scores(*rows: list[float]) -> Scores:
    """Scores with these log-probabilities; 0 is padding."""
    logps = torch.tensor(rows, dtype=torch.float64)
    return Scores(logps, logps < 0)


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_pairs_equal_those_of_separate_rows(seed):
    policy, batch = float64_model(seed), pairs(5, seed)
    scored = score_pairs(policy, batch)
    chosen, rejected = plain_logps(policy, batch.chosen), plain_logps(policy, batch.rejected)
    separate = PairScores.from_logps(chosen, rejected, torch.device("cpu"))
    for one, other in ((scored.chosen, separate.chosen), (scored.rejected, separate.rejected)):
        assert torch.equal(one.mask_BT, other.mask_BT)
        assert torch.allclose(one.logps_BT, other.logps_BT)
    assert lengths(scored.chosen).tolist() == [len(logps) for logps in chosen]
    assert torch.allclose(mean_logps(scored.rejected), torch.stack([logps.mean() for logps in rejected]))


def test_tie_counts_half_in_the_accuracy():
    rewards = torch.tensor([1.0, 2.0, 0.0, 3.0]), torch.tensor([1.0, 1.0, 4.0, 3.0])
    both = PairScores(scores([-1, -2], [-1, 0], [-3, 0], [-2, -2]), scores([-4, 0], [-1, -1], [-2, 0], [-1, 0]))
    found = combine(pair_metrics(*rewards, both))
    # tie, correct, wrong, tie: (½ + 1 + 0 + ½) / 4; gaps 0, 1, −4, 0; lengths 2, 1, 1, 2 and 1, 2, 1, 1
    assert found["accuracy"] == pytest.approx(2 / 4)
    assert found["margin"] == pytest.approx(-3 / 4)
    assert found["reward/chosen"] == pytest.approx(6 / 4)
    assert found["reward/rejected"] == pytest.approx(9 / 4)
    assert found["logp/chosen"] == pytest.approx((-3 - 1 - 3 - 4) / 4)
    assert found["logp/rejected"] == pytest.approx((-4 - 2 - 2 - 1) / 4)
    assert found["length/chosen"] == pytest.approx(6 / 4)
    assert found["length/rejected"] == pytest.approx(5 / 4)


def test_log_odds_of_worked_probabilities():
    # P = ½: ln 1; P = 4/5: ln (4/5 / 1/5) = ln 4; P = 1/5: −ln 4
    found = log_odds(torch.tensor([0.5, 0.8, 0.2]).log())
    assert found.tolist() == pytest.approx([0, log(4), -log(4)], abs=1e-6)
    # ln 4 − (−ln 4) = ln 16: −ln σ(ln 16) = ln (17/16)
    assert odds_ratio(torch.tensor([0.8]).log(), torch.tensor([0.2]).log()).item() == pytest.approx(log(17 / 16))


def test_log_odds_are_finite_for_probabilities_near_0_and_1():
    means = torch.tensor([0.0, -1e-9, -1e-6, -200.0], requires_grad=True)
    assert torch.isfinite(log_odds(means)).all()
    # ln P − ln (1 − P) of P = e^−200 is −200; the maximum, at P = 1 − 1e−7, is 7 ln 10
    assert log_odds(means)[[0, 3]].tolist() == pytest.approx([7 * log(10), -200], rel=1e-5)
    for chosen, rejected in ((means, means.flip(0)), (means.flip(0), means)):
        (gradient,) = torch.autograd.grad(odds_ratio(chosen, rejected).sum(), means)
        assert torch.isfinite(gradient).all()


def means(policy, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean log-probability per token of chosen and rejected completions, [B] each."""
    chosen, rejected = (
        torch.stack([logps.mean() for logps in plain_logps(policy, side)]) for side in (batch.chosen, batch.rejected)
    )
    return chosen, rejected


def test_orpo_loss_is_nll_plus_the_odds_ratio_term():
    policy, batch = float64_model(), pairs(4)
    chosen, rejected = means(policy, batch)
    odds = [p / (1 - p) for p in (chosen.exp(), rejected.exp())]
    # −log π(chosen) per token − λ ln σ(ln (odds ratio)), and σ(ln x) = x / (1 + x)
    expected = (-chosen - 0.3 * torch.log(odds[0] / odds[1] / (1 + odds[0] / odds[1]))).sum()
    found = make_method("orpo", policy, odds_coef=0.3).loss_sum(batch)
    assert found.total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert combine(found.metrics)["nll/chosen"] == pytest.approx(-chosen.mean().item())


def test_simpo_loss_is_the_logistic_loss_of_the_length_normalised_margin():
    policy, batch = float64_model(), pairs(4)
    chosen, rejected = means(policy, batch)
    # −ln σ(β (m_c − m_r) − γ) with β = 2 and γ = 0.5 β = 1
    expected = torch.log1p(torch.exp(-(2 * (chosen - rejected) - 1))).sum()
    found = make_method("simpo", policy, beta=2.0, gamma_beta_ratio=0.5).loss_sum(batch)
    assert found.total.item() == pytest.approx(expected.item())
    # the logged margin is that of the rewards, without γ
    assert combine(found.metrics)["margin"] == pytest.approx(2 * (chosen - rejected).mean().item())


def test_simpo_loss_of_equal_completions_is_the_loss_of_the_target_margin():
    # β = 2, γ/β = 0.5: the loss of equal means is −ln σ(−1) = ln (1 + e)
    policy, batch = float64_model(), pairs(1)
    same = type(batch)(batch.chosen, batch.chosen, batch.margin_B)
    assert make_method("simpo", policy, beta=2.0, gamma_beta_ratio=0.5).loss_sum(same).total.item() == pytest.approx(
        log(1 + exp(1))
    )


def test_cpo_is_reference_free_dpo_plus_sft():
    policy, batch = float64_model(), pairs(5)
    cpo = make_method("cpo", policy, beta=0.2, sft_coef=0.7, label_smoothing=0.1).loss_sum(batch).total
    dpo = make_method("dpo", policy, beta=0.2, sft_coef=0.7, label_smoothing=0.1, reference_free=True)
    other = dpo.loss_sum(dpo.prepare(batch)).total
    assert cpo.item() == pytest.approx(other.item())
    assert torch.allclose(flat_gradient(policy, cpo), flat_gradient(policy, other))
    # −ln σ(0.2 Δ), smoothed, − 0.7 log π(chosen) per token
    gap = 0.2 * (sequence_logps(policy, batch.chosen) - sequence_logps(policy, batch.rejected))
    expected = 0.9 * torch.log1p(torch.exp(-gap)) + 0.1 * torch.log1p(torch.exp(gap)) - 0.7 * means(policy, batch)[0]
    assert cpo.item() == pytest.approx(expected.sum().item())


@pytest.mark.parametrize("method", WITHOUT_REFERENCE)
def test_gradient_is_independent_of_micro_batch_size(method):
    policy, batch = float64_model(), pairs(5)
    learner = make_method(method, policy)
    whole = flat_gradient(policy, learner.loss_sum(batch).total)
    one_by_one = torch.stack([learner.loss_sum(batch.select([index])).total for index in range(5)]).sum()
    # ORPO computes odds in float32
    assert torch.allclose(flat_gradient(policy, one_by_one), whole, atol=1e-5)
    assert learner.denominator(batch) == 5
    assert not learner.needs_reference()
