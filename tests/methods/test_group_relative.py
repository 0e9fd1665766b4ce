"""Losses of GRPO, RLOO and REINFORCE++ against worked numbers, and the completions they exclude."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from postrain.errors import ConfigError
from postrain.losses.policy_losses import POLICY_LOSSES, cispo
from postrain.methods.group_relative import GroupExperience
from postrain.rewards.base import WeightedSum
from postrain.rewards.function import Function
from postrain.rollout.collect import Rollouts
from postrain.types import Rows
from tests.methods.builders import flat_gradient, float64_model, make_method, plain_logps, random_sequences, rows
from tests.tiny import tiny_model

NO_REWARD = Function.of(lambda prompts: prompts)
FAMILY = ("grpo", "rloo", "reinforce")


def test_cispo_clip_fraction_counts_bounded_ratios_of_both_signs():
    logps_BT = torch.tensor([[0.1, 0.9, 1.1, 5.0]]).log()
    old_BT, mask_BT = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    # For advantages of both signs; an advantage of 0 counts no clip.
    for advantage, expected in ((1.0, True), (-1.0, True), (0.0, False)):
        found = cispo(logps_BT, old_BT, torch.full((1, 4), advantage), mask_BT)
        assert found.clipped_BT.tolist() == [[expected, False, False, expected]]
    batch, policy = rollout([1.0, -1.0])
    moved = replace(batch, logps_BT=batch.logps_BT - 1.0)  # every ratio is e
    for loss, share in (("clipped", 1.0), ("cispo", 2.0)):
        found = make_method("grpo", policy, loss=loss).loss_sum(moved).metrics["clip_fraction"]
        tokens = [int(mask.sum()) for mask in batch.rows.supervised]
        # Both losses clip A > 0; only cispo clips A < 0.
        assert found.value() == pytest.approx((tokens[0] + (share - 1) * tokens[1]) / sum(tokens))


def rollout(advantages: list[float], seed: int = 0) -> tuple[GroupExperience, torch.nn.Module]:
    """Random completions with these advantages, two per random prompt, and the policy that sampled them."""
    policy, draw = float64_model(), torch.Generator().manual_seed(seed)
    prompts = [prompt for prompt in random_sequences(len(advantages) // 2, 6, draw) for _ in range(2)]
    batch = replace(
        rows(prompts, random_sequences(len(advantages), 9, draw)), row_ids=tuple(i // 2 for i in range(len(advantages)))
    )
    with torch.no_grad():
        logps = torch.nn.utils.rnn.pad_sequence(plain_logps(policy, batch), batch_first=True)
    lengths_B = torch.tensor([int(mask.sum()) for mask in batch.supervised])
    mask_BT = torch.arange(logps.shape[1]) < lengths_B[:, None]
    given_B = torch.tensor(advantages, dtype=torch.float64)
    included_B = torch.ones(len(advantages), dtype=torch.bool)
    advantages_BT, weight_B = given_B[:, None] * mask_BT, 1.0 / lengths_B.double()
    return GroupExperience(batch, logps, logps * 0, advantages_BT, weight_B, included_B), policy


@pytest.mark.parametrize("method", FAMILY)
def test_gradient_at_ratio_one_is_reinforce(method):
    """At ratio 1 every surrogate has the gradient of -A · log π, with the method's aggregation over tokens."""
    batch, policy = rollout([1.0, -0.5, 2.0, 0.0])
    learner = make_method(method, policy)
    gradient = flat_gradient(policy, learner.loss_sum(batch).total)
    logps = plain_logps(policy, batch.rows)
    per_token = method != "rloo"
    objectives = [
        float(advantage) * (logp.mean() if per_token else logp.sum())
        for advantage, logp in zip(batch.advantages_BT[:, 0], logps, strict=True)
    ]
    expected = -torch.stack(objectives).sum()
    assert torch.allclose(gradient, flat_gradient(policy, expected), atol=1e-10)


@pytest.mark.parametrize("changes", [*({"loss": name} for name in POLICY_LOSSES), {"loss_options": {"delta": 4.0}}])
def test_every_grpo_variant_is_reinforce_at_ratio_one(changes):
    batch, policy = rollout([1.0, -0.5, 2.0, 0.0])
    batch = replace(batch, selected_BT=torch.zeros_like(batch.logps_BT, dtype=torch.bool))
    plain, other = (
        flat_gradient(policy, make_method("grpo", policy, epochs=2, **c).loss_sum(batch).total) for c in ({}, changes)
    )
    assert torch.allclose(plain, other, atol=1e-10)


@pytest.mark.parametrize("method", FAMILY)
def test_loss_of_an_updated_policy_uses_the_ratio_to_the_sampler(method):
    """The sampler's log-probabilities are 0.05 per token below those of the policy."""
    batch, policy = rollout([1.0, -0.5, 2.0, -1.0])
    moved_BT = batch.logps_BT - 0.05
    found = make_method(method, policy, clip_low=0.5, clip_high=0.5).loss_sum(replace(batch, logps_BT=moved_BT)).total
    lengths = [len(logp) for logp in plain_logps(policy, batch.rows)]
    ratios = [math.exp(0.05 * (length if method == "rloo" else 1)) for length in lengths]
    clipped = [min(max(ratio, 0.5), 1.5) for ratio in ratios]
    advantages = batch.advantages_BT[:, 0].tolist()
    expected = -sum(min(r * a, c * a) for r, c, a in zip(ratios, clipped, advantages, strict=True))
    assert float(found.detach()) == pytest.approx(expected)


def test_completions_without_gradient_skip_the_forward_pass():
    batch, _ = rollout([1.0, 0.0, 2.0, 0.0])
    learned = replace(batch, in_loss_B=torch.tensor([True, False, True, False]))
    assert [bool(cost) for cost in learned.cost()] == [True, False, True, False]
    # The shared prompt is computed once: half of its tokens (rounded up) count for each of the two completions.
    prompt, completion = int((~batch.rows.supervised[0]).sum()), int(batch.rows.supervised[0].sum())
    assert batch.cost()[0] == completion + (prompt + 1) // 2


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # Lengths 2 and 6; the last row is excluded; max_new_tokens is 10.
        ("grpo", [1 / 2, 1 / 6, 0]),
        ("bnpo", [1, 1, 0]),
        ("dr_grpo", [1 / 10, 1 / 10, 0]),
        # 3 completions over 8 tokens.
        ("dapo", [3 / 8, 3 / 8, 0]),
    ],
)
def test_token_weights_of_each_loss_type(loss_type, expected):
    learner = make_method("grpo", float64_model(), loss_type=loss_type, group_size=3)
    learner.sampling, learner.selected = replace(learner.sampling, max_new_tokens=10), [0]
    weight_B = learner.weights(torch.tensor([2, 6, 4]), torch.tensor([True, True, False]))
    assert weight_B.tolist() == pytest.approx(expected)


def test_gdpo_normalises_the_parts_of_a_weighted_sum():
    reward = WeightedSum(parts={"right": NO_REWARD, "short": NO_REWARD}, weights={"right": 1.0, "short": 0.5})
    gdpo = {"multi_objective_aggregation": "normalize_then_sum", "group_size": 2}
    method = make_method("grpo", tiny_model(), components={"reward": reward}, **gdpo)
    parts = ({"right": 1.0, "short": 3.0}, {"right": 1.0, "short": 1.0}, {"right": 1.0, "short": 2.0}, {"right": 0.0})
    one_token = torch.tensor([True])
    rollouts = Rollouts(
        rows=Rows((torch.zeros(1),) * 4, (one_token,) * 4, (0, 0, 1, 1)),
        logps_BT=torch.zeros(4, 1),
        finished_B=torch.ones(4, dtype=torch.bool),
        reward_B=torch.full((4,), 9.0),
        prompts=("",) * 4,
        completions=("",) * 4,
        parts=tuple({"short": None, **part} for part in parts),
        columns=({},) * 4,
    )
    # Two rewards of a group that differ are ±1/√2. Group 1: only `short` does; group 2: only `right`, as a lone `short`
    # has nothing to compare.
    expected = [0.5 / math.sqrt(2), -0.5 / math.sqrt(2), 1 / math.sqrt(2), -1 / math.sqrt(2)]
    shaped_PG = method.shaped_rewards(rollouts).view(2, 2)
    assert shaped_PG.flatten().tolist() == pytest.approx(expected, rel=3e-4)
    # Rewards 3 and 1 have a standard deviation of √2, 9 and 9 of 0; the normalised ones √½ and 2 · √½.
    method.accumulated = {}
    method.log_groups(torch.tensor([[3.0, 1.0], [9.0, 9.0]]), shaped_PG, torch.zeros(4, 1), torch.ones(4, 1).bool())
    assert method.accumulated["group/reward_std"].value() == pytest.approx(math.sqrt(2) / 2)
    assert method.accumulated["group/frac_reward_zero_std"].value() == 0
    with pytest.raises(ConfigError, match="normalises the parts of a weighted sum of rewards; choose one"):
        method.check_reward(NO_REWARD, None)


@dataclass(frozen=True)
class TwoTurns:
    """The part of an environment that advantages of turns use."""

    max_turns: int = 2


def test_turn_level_advantages_compare_equal_turns_of_a_group():
    """Episode 0 has turns of 1 and 2 tokens with rewards 0 and 1; episode 1 has one turn of 2 tokens with reward ½.

    Turn 0: returns 1 and ½, less their mean ¾. Turn 1: episode 0 alone, so 0. At episode level: ±¼ everywhere.
    """
    batch = rows([torch.tensor([1])] * 2, [torch.tensor([2, 3, 4]), torch.tensor([5, 6])])
    mask_BT = torch.tensor([[True, True, True], [True, True, False]])
    nothing = torch.zeros(2, 3)
    rollouts = Rollouts(
        *(batch, nothing, torch.ones(2).bool(), torch.tensor([1.0, 0.5]), ("", ""), ("", ""), ({}, {}), ({}, {})),
        turn_tokens=((1, 2), (2,)),
        turn_rewards=((0.0, 1.0), (0.5,)),
    )
    found = {
        level: make_method(
            "grpo",
            tiny_model(),
            components={"environment": TwoTurns()},
            scale_rewards="none",
            turn_level_advantages=level,
        ).token_advantages(rollouts, torch.tensor([[1.0, 0.5]]), nothing, mask_BT)
        for level in (True, False)
    }
    assert found[True].tolist() == [[0.25, 0.0, 0.0], [-0.25, -0.25, 0.0]]
    assert found[False].tolist() == [[0.25, 0.25, 0.25], [-0.25, -0.25, 0.0]]
    alone = replace(rollouts, turn_tokens=((3,), (2,)), turn_rewards=((1.0,), (0.5,)))
    method = make_method("grpo", tiny_model(), components={"environment": TwoTurns()}, turn_level_advantages=True)
    reward_PG = torch.tensor([[1.0, 0.5]])
    single = method.token_advantages(alone, reward_PG, nothing, mask_BT)
    assert single.equal(method.advantages(reward_PG, nothing, mask_BT))


def turns_of_two(
    tokens: tuple[tuple[int, ...], ...], rewards: tuple[tuple[float, ...], ...]
) -> tuple[Rollouts, torch.Tensor]:
    """Two episodes of one prompt with these turns, and the mask of their tokens."""
    batch = rows([torch.tensor([1])] * 2, [torch.ones(sum(counts), dtype=torch.long) for counts in tokens])
    total_B = torch.tensor([float(sum(each)) for each in rewards])
    mask_BT = torch.arange(max(map(sum, tokens))) < torch.tensor([[sum(counts)] for counts in tokens])
    found = (batch, torch.zeros(mask_BT.shape), torch.ones(2).bool(), total_B, ("", ""), ("", ""), ({}, {}), ({}, {}))
    return Rollouts(*found, turn_tokens=tokens, turn_rewards=rewards), mask_BT


def turn_level(method: str, rollouts: Rollouts, mask_BT: torch.Tensor, penalty: float = 0.0, **changes) -> torch.Tensor:
    """The advantages with turn_level_advantages; each token has this KL penalty."""
    turns = TwoTurns(max(map(len, rollouts.turn_tokens or ())))
    made = make_method(
        method, tiny_model(), components={"environment": turns}, turn_level_advantages=True, group_size=2, **changes
    )
    return made.token_advantages(rollouts, rollouts.reward_B.view(1, 2), penalty * mask_BT, mask_BT)


def test_reinforce_whitens_the_tokens_of_all_turns_at_once():
    """Returns 3 and 1 of turn 0 (centred ±1, tokens 1 and 2), 2 and 1 of turn 1 (centred ±½, one token each).

    The tokens are 1, ½ and −1, −1, −½: mean −0.2, variance 3.5 / 5 − 0.04 = 0.66.
    """
    found_BT = turn_level("reinforce", *turns_of_two(((1, 1), (2, 1)), ((1.0, 2.0), (0.0, 1.0))))
    std = 0.66**0.5
    assert found_BT.tolist() == [
        pytest.approx([1.2 / std, 0.7 / std, 0.0]),
        pytest.approx([-0.8 / std, -0.8 / std, -0.3 / std]),
    ]


def test_kl_penalty_of_a_turn_is_that_of_its_tokens_and_later_ones():
    """A penalty of 0.1 per token. Turn 0: returns 1 − 0.3 and 1 − 0.2. Turn 1: 1 − 0.2 and 1 − 0.1."""
    rollouts, mask_BT = turns_of_two(((1, 2), (1, 1)), ((0.0, 1.0), (0.0, 1.0)))
    found_BT = turn_level("rloo", rollouts, mask_BT, penalty=0.1)
    assert found_BT.tolist() == [pytest.approx([-0.1] * 3), pytest.approx([0.1, 0.1, 0.0])]


def test_opo_weighs_a_turn_by_its_own_length():
    """Turn 0 has 1 and 3 tokens and returns 1 and 0: baseline ¼. Turn 1 has 3 and 1 tokens, the same returns: ¾."""
    rollouts, mask_BT = turns_of_two(((1, 3), (3, 1)), ((0.0, 1.0), (0.0, 0.0)))
    found_BT = turn_level("grpo", rollouts, mask_BT, advantage="opo")
    assert found_BT.tolist() == [pytest.approx([0.75, 0.25, 0.25, 0.25]), pytest.approx([-0.25] * 3 + [-0.75])]


def less_known_mean(rewards):
    """An advantage that keeps the NaN of an unknown reward."""
    return rewards - rewards.nanmean(1, keepdim=True)


def test_own_advantage_of_a_turn_that_an_episode_lacks_is_left_out():
    """Turn 0: returns 1 and ½, less their mean ¾. Turn 1: 1 of episode 0 alone, less itself; NaN of episode 1."""
    rollouts, mask_BT = turns_of_two(((1, 2), (2,)), ((0.0, 1.0), (0.5,)))
    found_BT = turn_level("grpo", rollouts, mask_BT, advantage=f"{__name__}.less_known_mean")
    assert found_BT.tolist() == [[0.25, 0.0, 0.0], [-0.25, -0.25, 0.0]]


def test_returns_of_turns_are_not_negative_by_rounding():
    """In float32, 0.7 − (0.1 + 0.6) is −6e-8, a negative reward for maxrl."""
    rollouts, mask_BT = turns_of_two(((1, 1, 1), (1, 1, 1)), ((0.1, 0.6, 0.0), (0.1, 0.0, 0.0)))
    found_BT = turn_level("grpo", rollouts, mask_BT, advantage="maxrl")
    # Returns 0.7 and 0.1, mean 0.4; 0.6 and 0, mean 0.3; 0 and 0.
    assert found_BT.tolist() == [pytest.approx([0.75, 1.0, 0.0]), pytest.approx([-0.75, -1.0, 0.0])]


def test_reward_parts_of_some_rows_are_logged_over_these_rows():
    batch = rows([torch.tensor([1])] * 2, [torch.tensor([2]), torch.tensor([3])])
    two = torch.ones(2).bool()
    parts = ({"polite": 1.0}, {"short": 0.5})
    found = Rollouts(batch, torch.zeros(2, 1), two, torch.ones(2), ("", ""), ("", ""), parts, ({}, {})).metrics()
    assert [found[f"reward/{name}"].value() for name in ("polite", "short")] == [1.0, 0.5]
