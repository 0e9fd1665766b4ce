"""Rollouts of the online methods: rewards, advantages, selection, mini-batches. Engine and reward are fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.types import RewardBatch
from tests.methods.builders import ScriptedEngine, defaults, flat_gradient, make_method
from tests.tiny import tiny_model

NAN = float("nan")
FAMILY = ("grpo", "rloo", "reinforce")


class NumberTemplate:
    """Tokens are their numbers."""

    stop_ids = (0,)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(int(token)) for token in ids)

    decode_all = decode


@dataclass
class FirstTokenReward:
    """Pays a completion by its first token."""

    values: Mapping[str, float]

    def __call__(self, prompts: Any, completions: Any, columns: Any) -> RewardBatch:
        paid = torch.tensor([self.values[text.split()[0]] for text in completions])
        return RewardBatch(paid, {"table": tuple(paid.tolist())})

    def to(self, device: Any) -> None: ...


def prompts(count: int) -> Prompts:
    ids = tuple(torch.tensor([5, 6 + place]) for place in range(count))
    return Prompts(ids, tuple(map(str, range(count))), ({},) * count, tuple(range(count)))


def scripted_method(
    method: str, completions: Sequence[Sequence[int]], values: Mapping[str, float], **changes: Any
) -> Any:
    """The method with an engine that returns `completions` in order and a reward of the first token."""
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(values),
    }
    alone = {"dynamic_sampling": 0} if "dynamic_sampling" in defaults(method) else {}
    found = make_method(
        method, tiny_model(), components=components, **{"batch_size": 2, "group_size": 2, **alone, **changes}
    )
    found.accumulated = {}
    return found


def logged(method: Any, name: str) -> float:
    return method.accumulated[name].value()


class Oracle(ScriptedEngine):
    """Knows each prompt's answer: the token after its last one."""

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list:
        self.completions, self.calls = [[int(prompt[-1]) + 1, 0] for prompt in prompts], 0
        return super().generate(model, prompts, seeds=seeds, stop=stop)


class Answer:
    """Pays 1 for the row's own answer."""

    def __call__(self, prompts: Any, completions: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> RewardBatch:
        right = [float(said.split()[0] == row["answer"]) for said, row in zip(completions, columns, strict=True)]
        return RewardBatch(torch.tensor(right), {"answer": tuple(right)})

    def to(self, device: Any) -> None: ...


@pytest.mark.parametrize("method", FAMILY)
def test_an_oracle_is_right_about_every_shuffled_row(method):
    found = make_method(
        method,
        tiny_model(),
        components={"engine": Oracle(), "template": NumberTemplate(), "reward": Answer()},
        group_size=3,
        dynamic_sampling=0,
    )
    found.accumulated, asked = {}, prompts(16)
    asked = replace(asked, columns=tuple({"answer": str(int(ids[-1]) + 1)} for ids in asked.ids))
    found.prepare(asked.select(torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()))
    assert logged(found, "reward/total") == 1.0


@pytest.mark.parametrize("method", FAMILY)
def test_equal_rewards_give_no_gradient_and_say_so(method):
    found = scripted_method(method, [[1, 0], [2, 3, 0]], {"1": 1.0, "2": 1.0})
    prepared = found.prepare(prompts(2))
    assert not prepared.advantages_BT.any()
    assert prepared.cost() == [0, 0, 0, 0]
    assert logged(found, "group/frac_reward_zero_std") == 1


def test_unscorable_rewards_give_no_gradient_in_a_run():
    found = scripted_method("grpo", [[1, 0], [2, 0]], {"1": NAN, "2": NAN})
    assert not found.prepare(prompts(2)).advantages_BT.any()
    assert logged(found, "reward/unscorable") == 1


def test_groups_of_the_same_prompt_are_compared():
    # First prompt 3 and 1, second 1 and 1: with scale none ±1 and 0, at every token of each completion.
    completions = [[3, 4, 0], [1, 0], [1, 0], [1, 7, 7, 0]]
    found = scripted_method("grpo", completions, {"3": 3.0, "1": 1.0}, scale_rewards="none")
    prepared = found.prepare(prompts(2))
    assert prepared.advantages_BT.tolist() == [[1, 1, 1, 0], [-1, -1, 0, 0], [0] * 4, [0] * 4]
    assert prepared.learned_B.tolist() == [True, True, False, False]
    assert logged(found, "group/frac_reward_zero_std") == 0.5
    (minibatch,) = found.minibatches(prepared)
    assert sorted(minibatch.rows.row_ids) == [0, 0, 1, 1]
    assert found.denominator(minibatch) == 4


def test_truncated_completions_are_penalised_or_masked():
    completions = [[3, 4], [3, 0]]
    fined = scripted_method(
        "grpo", completions, {"3": 1.0}, scale_rewards="none", missing_eos_penalty=0.5, batch_size=1
    )
    # Rewards 0.5 and 1: mean 0.75.
    assert fined.prepare(prompts(1)).advantages_BT[:, 0].tolist() == [-0.25, 0.25]
    masked = scripted_method(
        "grpo",
        completions,
        {"3": 1.0},
        scale_rewards="none",
        missing_eos_penalty=0.5,
        mask_truncated_completions=True,
        batch_size=1,
    )
    assert masked.prepare(prompts(1)).learned_B.tolist() == [False, True]


def test_dynamic_sampling_replaces_zero_variance_groups():
    # Prompts 0 and 2 agree with themselves, 1 and 3 do not: the second wave supplies the second group.
    completions = [[1, 0], [1, 0], [1, 0], [2, 0], [2, 0], [2, 0], [2, 0], [1, 0]]
    found = scripted_method("grpo", completions, {"1": 1.0, "2": 0.0}, dynamic_sampling=2)
    assert found.items_per_update() == 6
    prepared = found.prepare(prompts(6))
    assert found.selected == [1, 3]
    assert logged(found, "group/prompts_sampled") == 4
    assert prepared.learned_B.tolist() == [False, False, True, True, False, False, True, True]
    (minibatch,) = found.minibatches(prepared)
    assert sorted(minibatch.rows.row_ids) == [1, 1, 3, 3]


@pytest.mark.parametrize("method", FAMILY)
def test_step_is_divided_by_batch_size_with_few_useful_groups(method):
    """One group of eight differs: with six more to draw from or without, the step of two mini-batches is the same."""
    same, pair = [[2, 0], [2, 0]], [[1, 0], [2, 0]]
    values = {"1": 1.0, "2": 0.0}
    alone = scripted_method(method, [*same, *pair], values, batch_size=2)
    among = scripted_method(method, [*same, *pair, *same * 6], values, batch_size=2, dynamic_sampling=3)
    gradients = []
    for found in (alone, among):
        prepared = found.prepare(prompts(found.items_per_update()))
        (minibatch,) = found.minibatches(prepared)
        assert logged(found, "group/with_gradient") == 1
        assert found.denominator(minibatch) == 4
        used = minibatch.select([item for item, cost in enumerate(minibatch.cost()) if cost])
        gradients.append(flat_gradient(found.policy, found.loss_sum(used).total / found.denominator(minibatch)))
    assert gradients[0].any()
    assert torch.equal(*gradients)
    assert logged(among, "group/prompts_sampled") == 8


@pytest.mark.parametrize("minibatches", [1, 4])
def test_a_batch_of_zero_variance_groups_has_all_minibatches(minibatches):
    found = scripted_method(
        "grpo", [[1, 0]], {"1": 1.0}, batch_size=4, minibatches_per_epoch=minibatches, dynamic_sampling=1
    )
    prepared = found.prepare(prompts(8))
    assert logged(found, "group/with_gradient") == 0
    sizes = [found.denominator(minibatch) for minibatch in found.minibatches(prepared)]
    assert sizes == [8 // minibatches] * minibatches
    assert not any(prepared.cost())


@pytest.mark.parametrize(("method", "changes"), [("reinforce", {}), ("grpo", {"scale_rewards": "batch"})])
def test_unselected_groups_are_in_no_statistic(method, changes):
    """Two groups that differ, drawn alone or among others that agree: the same advantages."""
    pair, same = [[1, 0], [2, 0]], [[2, 0], [2, 0]]
    values = {"1": 1.0, "2": 0.0}
    alone = scripted_method(method, pair + pair, values, **changes).prepare(prompts(2))
    among = scripted_method(method, same + pair + same + pair, values, dynamic_sampling=1, **changes).prepare(
        prompts(4)
    )
    kept = among.select([2, 3, 6, 7])
    assert torch.allclose(kept.advantages_BT, alone.advantages_BT)
    assert not among.select([0, 1, 4, 5]).learned_B.any()


@pytest.mark.parametrize(("method", "changes"), [("reinforce", {}), ("grpo", {"scale_rewards": "batch"}), ("rloo", {})])
def test_nothing_that_can_be_scored_is_no_gradient(method, changes):
    found = scripted_method(method, [[1, 0], [2, 0]], {"1": NAN, "2": NAN}, **changes)
    assert found.prepare(prompts(2)).cost() == [0, 0, 0, 0]


def test_unscorable_completions_are_in_no_mean():
    """Its KL is off the returns of others: rewards 2, 0 and nobody knows, baseline 1, KL 0, 0 and 8."""
    found = scripted_method("reinforce", [[1, 0]], {"1": 1.0}, batch_size=1, group_size=3)
    kl_BT, mask_BT = torch.tensor([[0.0], [0.0], [8.0]]), torch.ones(3, 1, dtype=torch.bool)
    advantages_BT = found.advantages(torch.tensor([[2.0, 0.0, NAN]]), kl_BT, mask_BT)
    assert advantages_BT[:2, 0].tolist() == pytest.approx([1.0, -1.0])


def test_reinforce_learns_from_single_completions():
    found = scripted_method("reinforce", [[1, 0], [2, 0]], {"1": 1.0, "2": 0.0}, group_size=1, dynamic_sampling=2)
    prepared = found.prepare(prompts(6))
    assert found.selected == [0, 1]
    assert prepared.learned_B.tolist() == [True, True]


def test_two_minibatches_hold_whole_groups():
    completions = [[1, 0], [2, 0]]
    found = scripted_method("rloo", completions, {"1": 1.0, "2": 0.0}, batch_size=4, minibatches_per_epoch=2, epochs=2)
    seen = [minibatch.rows.row_ids for minibatch in found.minibatches(found.prepare(prompts(4)))]
    assert [len(rows) for rows in seen] == [4, 4, 4, 4]
    assert all(sorted(one + other) == [0, 0, 1, 1, 2, 2, 3, 3] for one, other in (seen[:2], seen[2:]))
    assert all(rows[0] == rows[1] and rows[2] == rows[3] for rows in seen)


def test_rloo_subtracts_the_kl_from_the_reward():
    """The penalty is 0.05 for each of two tokens: 0.1 less reward."""
    found = scripted_method("rloo", [[1, 0], [2, 0]], {"1": 1.0, "2": 1.0}, batch_size=1)
    penalty_BT = torch.tensor([[0.05, 0.05], [0.0, 0.0]])
    # Paid 0.9 and 1: leave one out -0.1 and 0.1.
    advantages_BT = found.advantages(torch.ones(1, 2), penalty_BT, torch.ones(2, 2, dtype=torch.bool))
    assert advantages_BT[:, 0].tolist() == pytest.approx([-0.1, 0.1])


def test_reinforce_whitens_over_all_tokens():
    found = scripted_method("reinforce", [[1, 0]], {"1": 1.0}, batch_size=1)
    # Rewards 2 and 0, baseline 1: returns 1, 1, 1 and -1; mean 0.5, variance 0.75.
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    advantages_BT = found.advantages(torch.tensor([[2.0, 0.0]]), torch.zeros(2, 3), mask_BT)
    up, down = 0.5 / 0.75**0.5, -1.5 / 0.75**0.5
    assert advantages_BT.flatten().tolist() == pytest.approx([up, up, up, down, 0, 0])


@pytest.mark.parametrize("method", ["grpo", "rloo", "online_dpo"])
def test_a_group_of_one_is_refused(method):
    with pytest.raises(ConfigError, match=r"method\.group_size=1"):
        scripted_method(method, [[1, 0]], {"1": 1.0}, group_size=1)
    assert scripted_method("reinforce", [[1, 0]], {"1": 1.0}, group_size=1).group_size == 1


def test_an_engine_with_other_log_probabilities_is_rejected():
    found = scripted_method("grpo", [[1, 0], [2, 0]], {"1": 1.0, "2": 0.0})
    prepared = found.prepare(prompts(2))
    found.loss_sum(prepared)
    assert logged(found, "rollout/logp_error") < 1e-5
    found.dropout = True
    prepared.logps_BT.add_(0.1)
    found.loss_sum(prepared)
    found.dropout = False
    with pytest.raises(ConfigError, match=r"sampled log-probabilities differ by 0\.1"):
        found.loss_sum(prepared)
