"""What GRPO, RLOO and REINFORCE++ compute, by hand, and what they share: groups, baselines, what is left out."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from postrain.methods.groups import Rollout, centred, differing
from postrain.methods.grpo import (
    SCALES,
    batch_std,
    cispo,
    cispo_clips,
    group_std,
    overlong,
    sequence_ratio,
    token_ratio,
)
from postrain.methods.rloo import completion_ratio, leave_one_out
from postrain.ops import clipped_surrogate, to_come
from tests.methods.made import flat_gradient, made, pieces, plain_logps, precise, rows

NAN = float("nan")
FAMILY = ("grpo", "rloo", "reinforce")


def test_rloo_baseline_is_the_mean_of_the_others():
    # Four samples of three prompts: of the first prompt 1, 2, 5, 8: 1 - (2 + 5 + 8) / 3 = -4;
    # of the second 2, 3, 6, 9: 6 - (2 + 3 + 9) / 3 = 1.3333.
    samples = torch.tensor([[1.0, 2, 3], [2, 3, 4], [5, 6, 7], [8, 9, 10]])
    found = leave_one_out(samples.T).T.flatten()
    assert found[0] == pytest.approx(-4)
    assert found[7] == pytest.approx(1.3333, abs=1e-4)


def test_an_unscorable_reward_leaves_the_baseline_and_gets_nothing():
    # Scored: 1 and 4, mean 2.5; leave one out: 1 - 4 and 4 - 1.
    reward_PG = torch.tensor([[1.0, NAN, 4.0], [NAN, NAN, NAN], [NAN, 2.0, NAN]])
    assert centred(reward_PG).tolist() == [[-1.5, 0, 1.5], [0, 0, 0], [0, 0, 0]]
    assert leave_one_out(reward_PG).tolist() == [[-3, 0, 3], [0, 0, 0], [0, 0, 0]]
    assert differing(reward_PG).tolist() == [True, False, False]


def test_rounding_does_not_tell_equal_rewards_apart():
    reward_PG = torch.tensor([[100.1] * 8, [100.1] * 7 + [100.2]])
    assert differing(reward_PG).tolist() == [False, True]
    assert not centred(reward_PG)[0].any()
    # One alone is compared with the batch, if it could be scored.
    assert differing(torch.tensor([[1.0], [NAN]])).tolist() == [True, False]


def test_the_batchs_spread_survives_large_rewards():
    # offset ± 0.125: the variance over n - 1 = 3 is 4 · 0.125² / 3.
    for offset in (0.0, 1000.0, 1_000_000.0):
        found = batch_std(offset + torch.tensor([[0.125, -0.125], [-0.125, 0.125]]))
        assert float(found) == pytest.approx(math.sqrt(4 * 0.125**2 / 3), rel=1e-9)
    assert float(batch_std(torch.full((2, 2), NAN))) == 0


@pytest.mark.parametrize("offset", [0.0, 1000.0, 1_000_000.0])
def test_a_groups_differences_survive_large_rewards(offset):
    # Mean 0.0625 of 0.125, -0.125, 0.125, 0.125: 0.0625 three times and -0.1875; squares 3 · 0.0625² + 0.1875², over 3.
    reward_PG = offset + torch.tensor([[0.125, -0.125, 0.125, 0.125]])
    assert centred(reward_PG).tolist() == [[0.0625, -0.1875, 0.0625, 0.0625]]
    assert leave_one_out(reward_PG)[0].tolist() == pytest.approx([0.25 / 3, -0.25, 0.25 / 3, 0.25 / 3], rel=1e-6)
    assert float(group_std(reward_PG)) == pytest.approx(0.125, rel=1e-6)


def test_scales():
    # Group 1: mean 2, squares 1 + 0 + 1 over n - 1 = 2: 1. Group 2: all 5: 0. A lone scored reward: 0.
    reward_PG = torch.tensor([[1.0, 2, 3], [5, 5, 5], [NAN, 7, NAN]])
    assert group_std(reward_PG).flatten().tolist() == [1, 0, 0]
    # All seven scored: sum 28, squares 14 + 75 + 49 = 138, variance (138 - 28² / 7) / 6 = 26 / 6.
    assert batch_std(reward_PG) == pytest.approx(math.sqrt(26 / 6))
    assert SCALES["group"](reward_PG).flatten().tolist() == pytest.approx([1.0001, 1e-4, 1e-4])
    assert SCALES["batch"](reward_PG) == pytest.approx(math.sqrt(26 / 6) + 1e-4)
    assert SCALES["none"](reward_PG) == 1


def test_ratios():
    log_ratio_BT = torch.tensor([[math.log(2), math.log(8), 0.0]])
    mask_BT = torch.tensor([[True, True, False]])
    assert token_ratio(log_ratio_BT, mask_BT)[0, :2].tolist() == pytest.approx([2, 8])
    # The geometric mean of 2 and 8.
    assert sequence_ratio(log_ratio_BT, mask_BT).tolist() == [[pytest.approx(4)]]


def test_clipped_surrogates():
    ratio_BT = torch.tensor([[0.5, 1.0, 1.5, 10.0]])
    plus, minus = torch.ones(1, 4), -torch.ones(1, 4)
    # A > 0: the upper clip holds the gain; A < 0: only the lower one holds the loss, so that 10 counts as 10.
    assert clipped_surrogate(ratio_BT, plus, 0.2, 0.28).tolist()[0] == pytest.approx([-0.5, -1.0, -1.28, -1.28])
    assert clipped_surrogate(ratio_BT, minus, 0.2, 0.28).tolist()[0] == pytest.approx([0.8, 1.0, 1.5, 10.0])
    assert clipped_surrogate(ratio_BT, minus, 0.2, 0.28, ceiling=4.0).tolist()[0] == pytest.approx([0.8, 1.0, 1.5, 4.0])


def test_cispo_keeps_every_gradient():
    logps_BT = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    # Ratios 0.1 and 5 are held to 0.8 and 1.2: the gradient is -weight · A.
    loss_BT = cispo(torch.tensor([[0.1, 5.0]]), torch.tensor([[1.0, -2.0]]), logps_BT, 0.2, 0.2)
    assert loss_BT.tolist() == [pytest.approx([0.8, -4.8])]
    (gradient,) = torch.autograd.grad(loss_BT.sum(), logps_BT)
    assert gradient.tolist() == [pytest.approx([-0.8, 2.4])]


def test_cispo_clips_what_it_bounds():
    ratio_BT = torch.tensor([[0.1, 0.9, 1.1, 5.0]], requires_grad=True)
    # Whichever way the advantage points; with none there is nothing to bound.
    for advantage, expected in ((1.0, True), (-1.0, True), (0.0, False)):
        found = cispo_clips(ratio_BT, torch.full((1, 4), advantage), 0.2, 0.2)
        assert found.tolist() == [[expected, False, False, expected]]
    batch, policy = rollout([1.0, -1.0])
    moved = replace(batch, logps_BT=batch.logps_BT - 1.0)  # every ratio is e
    for objective, share in (("clipped", 1.0), ("cispo", 2.0)):
        found = made("grpo", policy, objective=objective).loss_sum(moved).metrics["clip_fraction"]
        tokens = [int(mask.sum()) for mask in batch.rows.supervised]
        # A > 0 is clipped by both; A < 0 by cispo alone.
        assert found.value() == pytest.approx((tokens[0] + (share - 1) * tokens[1]) / sum(tokens))


def test_rloo_takes_the_completion_as_one_action():
    # Log-ratios 0.1 + 0.2 and the third token is padding: r = e^0.3 = 1.35, clipped to 1.2 for A = 2.
    mask_BT = torch.tensor([[True, True, False]])
    ratio_B1 = completion_ratio(torch.tensor([[0.1, 0.2, 5.0]]), mask_BT)
    assert ratio_B1.tolist() == [[pytest.approx(math.exp(0.3))]]
    assert clipped_surrogate(ratio_B1, torch.tensor([[2.0]]), 0.2, 0.2).tolist() == [[pytest.approx(-2.4)]]


def test_overlong_penalty_falls_over_the_buffer():
    # Limit 20, buffer 8: free up to 12, then 1/8 a token.
    assert overlong(torch.tensor([5, 12, 14, 20]), 20, 8).tolist() == pytest.approx([0, 0, -0.25, -1])


def test_to_come():
    assert to_come(torch.tensor([[1.0, 2.0, 4.0]])).tolist() == [[7, 6, 4]]


def rollout(advantages: list[float], seed: int = 0) -> tuple[Rollout, torch.nn.Module]:
    """Random completions of random prompts, two of each, with these advantages, sampled by the returned policy."""
    policy, draw = precise(), torch.Generator().manual_seed(seed)
    prompts = [prompt for prompt in pieces(len(advantages) // 2, 6, draw) for _ in range(2)]
    batch = replace(
        rows(prompts, pieces(len(advantages), 9, draw)), row_ids=tuple(i // 2 for i in range(len(advantages)))
    )
    with torch.no_grad():
        logps = torch.nn.utils.rnn.pad_sequence(plain_logps(policy, batch), batch_first=True)
    lengths_B = torch.tensor([int(mask.sum()) for mask in batch.supervised])
    mask_BT = torch.arange(logps.shape[1]) < lengths_B[:, None]
    given_B = torch.tensor(advantages, dtype=torch.float64)
    everyone = torch.ones(len(advantages), dtype=torch.bool)
    return Rollout(batch, logps, logps * 0, given_B[:, None] * mask_BT, 1.0 / lengths_B.double(), everyone), policy


@pytest.mark.parametrize("method", FAMILY)
def test_a_fresh_gradient_is_reinforce(method):
    """At ratio 1 every surrogate has the gradient of -A · log π, summed as the method sums tokens."""
    batch, policy = rollout([1.0, -0.5, 2.0, 0.0])
    asked = made(method, policy)
    ours = flat_gradient(policy, asked.loss_sum(batch).total)
    logps = plain_logps(policy, batch.rows)
    per_token = method != "rloo"
    paid = [
        float(advantage) * (logp.mean() if per_token else logp.sum())
        for advantage, logp in zip(batch.advantages_BT[:, 0], logps, strict=True)
    ]
    expected = -torch.stack(paid).sum()
    assert torch.allclose(ours, flat_gradient(policy, expected), atol=1e-10)


@pytest.mark.parametrize("changes", [{"objective": "cispo"}, {"ratio": "sequence"}, {"ratio_ceiling": 4.0}])
def test_all_of_grpo_is_reinforce_at_first(changes):
    batch, policy = rollout([1.0, -0.5, 2.0, 0.0])
    plain, other = (flat_gradient(policy, made("grpo", policy, **c).loss_sum(batch).total) for c in ({}, changes))
    assert torch.allclose(plain, other, atol=1e-10)


@pytest.mark.parametrize("method", FAMILY)
def test_ratios_move_with_the_policy(method):
    """One policy sampled, another is asked: the loss is the surrogate of its own log-probabilities."""
    batch, policy = rollout([1.0, -0.5, 2.0, -1.0])
    moved_BT = batch.logps_BT - 0.05
    found = made(method, policy, clip_low=0.5, clip_high=0.5).loss_sum(replace(batch, logps_BT=moved_BT)).total
    lengths = [len(logp) for logp in plain_logps(policy, batch.rows)]
    ratios = [math.exp(0.05 * (length if method == "rloo" else 1)) for length in lengths]
    held = [min(max(ratio, 0.5), 1.5) for ratio in ratios]
    advantages = batch.advantages_BT[:, 0].tolist()
    expected = -sum(min(r * a, h * a) for r, h, a in zip(ratios, held, advantages, strict=True))
    assert float(found.detach()) == pytest.approx(expected)


def test_completions_with_nothing_to_learn_cost_nothing():
    batch, _ = rollout([1.0, 0.0, 2.0, 0.0])
    learned = replace(batch, learned_B=torch.tensor([True, False, True, False]))
    assert [bool(cost) for cost in learned.cost()] == [True, False, True, False]
    # The prompt of two completions is paid for once: half of it (rounded up) by each.
    prompt, said = int((~batch.rows.supervised[0]).sum()), int(batch.rows.supervised[0].sum())
    assert batch.cost()[0] == said + (prompt + 1) // 2


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        # Lengths 2 and 6, the last row not counted, at most 10 tokens.
        ("grpo", [1 / 2, 1 / 6, 0]),
        ("bnpo", [1, 1, 0]),
        ("dr_grpo", [1 / 10, 1 / 10, 0]),
        # 3 completions over 8 tokens.
        ("dapo", [3 / 8, 3 / 8, 0]),
    ],
)
def test_aggregations(aggregation, expected):
    asked = made("grpo", precise(), aggregation=aggregation, group_size=3)
    asked.sampling, asked.kept = replace(asked.sampling, max_new_tokens=10), [0]
    found = asked.weights(torch.tensor([2, 6, 4]), torch.tensor([True, True, False]))
    assert found.tolist() == pytest.approx(expected)
