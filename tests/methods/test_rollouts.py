"""Rollouts of the online methods: rewards, advantages, selection, mini-batches. Engine and reward are fakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.methods.online import global_indices, local_indices
from postrain.types import RewardBatch
from tests.methods.builders import ScriptedEngine, defaults, flat_gradient, make_method
from tests.tiny import tiny_model

NAN = float("nan")
FAMILY = ("grpo", "rloo", "reinforce")


class NumberTemplate:
    """Decodes each token as its number."""

    stop_ids = (0,)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(str(int(token)) for token in ids)

    decode_all = decode


@dataclass
class FirstTokenReward:
    """Rewards a completion by its first token."""

    values: Mapping[str, float]

    def __call__(self, prompts: Any, completions: Any, columns: Any) -> RewardBatch:
        reward_B = torch.tensor([self.values[text.split()[0]] for text in completions])
        return RewardBatch(reward_B, {"table": tuple(reward_B.tolist())})

    def to(self, device: Any) -> None: ...


def prompts(count: int) -> Prompts:
    ids = tuple(torch.tensor([5, 6 + index]) for index in range(count))
    return Prompts(ids, tuple(map(str, range(count))), ({},) * count, tuple(range(count)))


def scripted_method(
    name: str, completions: Sequence[Sequence[int]], values: Mapping[str, float], **changes: Any
) -> Any:
    """A method with an engine that returns `completions` in order and a reward of the first token."""
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(values),
    }
    off = {"dynamic_sampling": 0} if "dynamic_sampling" in defaults(name) else {}
    method = make_method(
        name, tiny_model(), components=components, **{"batch_size": 2, "group_size": 2, **off, **changes}
    )
    method.accumulated = {}
    return method


def logged(method: Any, metric: str) -> float:
    return method.accumulated[metric].value()


class Oracle(ScriptedEngine):
    """Completes each prompt with its answer: the last token + 1."""

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list:
        self.completions, self.calls = [[int(prompt[-1]) + 1, 0] for prompt in prompts], 0
        return super().generate(model, prompts, seeds=seeds, stop=stop)


class ExactAnswer:
    """Reward 1 if the completion begins with the `answer` of its row."""

    def __call__(self, prompts: Any, completions: Sequence[str], columns: Sequence[Mapping[str, Any]]) -> RewardBatch:
        correct = [float(text.split()[0] == row["answer"]) for text, row in zip(completions, columns, strict=True)]
        return RewardBatch(torch.tensor(correct), {"answer": tuple(correct)})

    def to(self, device: Any) -> None: ...


@pytest.mark.parametrize("name", FAMILY)
def test_shuffled_rows_keep_their_answers(name):
    method = make_method(
        name,
        tiny_model(),
        components={"engine": Oracle(), "template": NumberTemplate(), "reward": ExactAnswer()},
        group_size=3,
        dynamic_sampling=0,
    )
    method.accumulated, batch = {}, prompts(16)
    batch = replace(batch, columns=tuple({"answer": str(int(ids[-1]) + 1)} for ids in batch.ids))
    method.prepare(batch.select(torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()))
    assert logged(method, "reward/total") == 1.0


@pytest.mark.parametrize("name", FAMILY)
def test_equal_rewards_give_no_gradient_and_are_logged(name):
    method = scripted_method(name, [[1, 0], [2, 3, 0]], {"1": 1.0, "2": 1.0})
    prepared = method.prepare(prompts(2))
    assert not prepared.advantages_BT.any()
    assert prepared.cost() == [0, 0, 0, 0]
    assert logged(method, "group/frac_reward_zero_std") == 1


def test_unscorable_rewards_give_no_gradient_and_are_logged():
    method = scripted_method("grpo", [[1, 0], [2, 0]], {"1": NAN, "2": NAN})
    assert not method.prepare(prompts(2)).advantages_BT.any()
    assert logged(method, "reward/unscorable") == 1


def test_advantages_compare_completions_of_the_same_prompt():
    # Rewards 3 and 1 of the first prompt: advantages ±1 at every token. Rewards 1 and 1 of the second: 0.
    completions = [[3, 4, 0], [1, 0], [1, 0], [1, 7, 7, 0]]
    method = scripted_method("grpo", completions, {"3": 3.0, "1": 1.0}, scale_rewards="none")
    prepared = method.prepare(prompts(2))
    assert prepared.advantages_BT.tolist() == [[1, 1, 1, 0], [-1, -1, 0, 0], [0] * 4, [0] * 4]
    assert prepared.in_loss_B.tolist() == [True, True, False, False]
    assert logged(method, "group/frac_reward_zero_std") == 0.5
    (minibatch,) = method.minibatches(prepared)
    assert sorted(minibatch.rows.row_ids) == [0, 0, 1, 1]
    assert method.denominator(minibatch) == 4


def test_truncated_completions_are_penalised_or_masked():
    completions = [[3, 4], [3, 0]]
    penalised = scripted_method(
        "grpo", completions, {"3": 1.0}, scale_rewards="none", missing_eos_penalty=0.5, batch_size=1
    )
    # Rewards 0.5 and 1: mean 0.75.
    assert penalised.prepare(prompts(1)).advantages_BT[:, 0].tolist() == [-0.25, 0.25]
    masked = scripted_method(
        "grpo",
        completions,
        {"3": 1.0},
        scale_rewards="none",
        missing_eos_penalty=0.5,
        mask_truncated_completions=True,
        batch_size=1,
    )
    assert masked.prepare(prompts(1)).in_loss_B.tolist() == [False, True]


def test_dynamic_sampling_replaces_zero_variance_groups():
    # Prompts 0 and 2 have equal rewards, 1 and 3 have not. The second group with variance comes from the second draw.
    completions = [[1, 0], [1, 0], [1, 0], [2, 0], [2, 0], [2, 0], [2, 0], [1, 0]]
    method = scripted_method("grpo", completions, {"1": 1.0, "2": 0.0}, dynamic_sampling=2)
    assert method.items_per_update() == 6
    prepared = method.prepare(prompts(6))
    assert method.selected == [1, 3]
    assert logged(method, "group/prompts_sampled") == 4
    assert prepared.in_loss_B.tolist() == [False, False, True, True, False, False, True, True]
    # ±½ over a standard deviation of √½ at every token of the selected groups: the others do not count.
    assert logged(method, "advantage/mean_abs") == pytest.approx(0.5**0.5, rel=1e-3)
    (minibatch,) = method.minibatches(prepared)
    assert sorted(minibatch.rows.row_ids) == [1, 1, 3, 3]


@pytest.mark.parametrize("name", FAMILY)
def test_step_is_divided_by_the_batch_size_when_few_groups_have_variance(name):
    """One group has variance. The gradient is the same whether 2 or 8 prompts are sampled to find it."""
    same, pair = [[2, 0], [2, 0]], [[1, 0], [2, 0]]
    values = {"1": 1.0, "2": 0.0}
    alone = scripted_method(name, [*same, *pair], values, batch_size=2)
    among = scripted_method(name, [*same, *pair, *same * 6], values, batch_size=2, dynamic_sampling=3)
    gradients = []
    for method in (alone, among):
        prepared = method.prepare(prompts(method.items_per_update()))
        (minibatch,) = method.minibatches(prepared)
        assert logged(method, "group/with_gradient") == 1
        assert method.denominator(minibatch) == 4
        used = minibatch.select([item for item, cost in enumerate(minibatch.cost()) if cost])
        gradients.append(flat_gradient(method.policy, method.loss_sum(used).total / method.denominator(minibatch)))
    assert gradients[0].any()
    assert torch.equal(*gradients)
    assert logged(among, "group/prompts_sampled") == 8


@pytest.mark.parametrize("minibatches", [1, 4])
def test_batch_of_zero_variance_groups_has_all_minibatches(minibatches):
    method = scripted_method(
        "grpo", [[1, 0]], {"1": 1.0}, batch_size=4, minibatches_per_epoch=minibatches, dynamic_sampling=1
    )
    prepared = method.prepare(prompts(8))
    assert logged(method, "group/with_gradient") == 0
    sizes = [method.denominator(minibatch) for minibatch in method.minibatches(prepared)]
    assert sizes == [8 // minibatches] * minibatches
    assert not any(prepared.cost())


@pytest.mark.parametrize(("name", "changes"), [("reinforce", {}), ("grpo", {"scale_rewards": "batch"})])
def test_unselected_groups_do_not_change_batch_statistics(name, changes):
    """Two groups with variance have the same advantages alone and among zero-variance groups."""
    pair, same = [[1, 0], [2, 0]], [[2, 0], [2, 0]]
    values = {"1": 1.0, "2": 0.0}
    alone = scripted_method(name, pair + pair, values, **changes).prepare(prompts(2))
    among = scripted_method(name, same + pair + same + pair, values, dynamic_sampling=1, **changes).prepare(prompts(4))
    kept = among.select([2, 3, 6, 7])
    assert torch.allclose(kept.advantages_BT, alone.advantages_BT)
    assert not among.select([0, 1, 4, 5]).in_loss_B.any()


@pytest.mark.parametrize(("name", "changes"), [("reinforce", {}), ("grpo", {"scale_rewards": "batch"}), ("rloo", {})])
def test_batch_without_scorable_completions_has_no_gradient(name, changes):
    method = scripted_method(name, [[1, 0], [2, 0]], {"1": NAN, "2": NAN}, **changes)
    assert method.prepare(prompts(2)).cost() == [0, 0, 0, 0]


def test_unscorable_completions_do_not_enter_the_baseline():
    """Rewards 2, 0 and unscorable, KL 0, 0 and 8: the baseline is 1, and the KL of 8 is in no other return."""
    method = scripted_method("reinforce", [[1, 0]], {"1": 1.0}, batch_size=1, group_size=3)
    kl_BT, mask_BT = torch.tensor([[0.0], [0.0], [8.0]]), torch.ones(3, 1, dtype=torch.bool)
    advantages_BT = method.token_advantages(None, torch.tensor([[2.0, 0.0, NAN]]), kl_BT, mask_BT)
    assert advantages_BT[:2, 0].tolist() == pytest.approx([1.0, -1.0])


def test_reinforce_learns_from_single_completions():
    method = scripted_method("reinforce", [[1, 0], [2, 0]], {"1": 1.0, "2": 0.0}, group_size=1, dynamic_sampling=2)
    prepared = method.prepare(prompts(6))
    assert method.selected == [0, 1]
    assert prepared.in_loss_B.tolist() == [True, True]


def test_minibatches_hold_whole_groups():
    completions = [[1, 0], [2, 0]]
    method = scripted_method("rloo", completions, {"1": 1.0, "2": 0.0}, batch_size=4, minibatches_per_epoch=2, epochs=2)
    row_ids = [minibatch.rows.row_ids for minibatch in method.minibatches(method.prepare(prompts(4)))]
    assert [len(rows) for rows in row_ids] == [4, 4, 4, 4]
    assert all(sorted(one + other) == [0, 0, 1, 1, 2, 2, 3, 3] for one, other in (row_ids[:2], row_ids[2:]))
    assert all(rows[0] == rows[1] and rows[2] == rows[3] for rows in row_ids)


def test_rloo_subtracts_the_kl_from_the_reward():
    """The KL penalty is 0.05 for each of the two tokens of the first completion: 0.1 in all."""
    method = scripted_method("rloo", [[1, 0], [2, 0]], {"1": 1.0, "2": 1.0}, batch_size=1)
    penalty_BT = torch.tensor([[0.05, 0.05], [0.0, 0.0]])
    # Rewards 0.9 and 1: leave-one-out advantages -0.1 and 0.1.
    advantages_BT = method.advantages(torch.ones(1, 2), penalty_BT, torch.ones(2, 2, dtype=torch.bool))
    assert advantages_BT[:, 0].tolist() == pytest.approx([-0.1, 0.1])


def test_reinforce_whitens_over_all_tokens():
    method = scripted_method("reinforce", [[1, 0]], {"1": 1.0}, batch_size=1)
    # Rewards 2 and 0, baseline 1: returns 1, 1, 1 and -1; mean 0.5, variance 0.75.
    mask_BT = torch.tensor([[True, True, True], [True, False, False]])
    advantages_BT = method.token_advantages(None, torch.tensor([[2.0, 0.0]]), torch.zeros(2, 3), mask_BT)
    up, down = 0.5 / 0.75**0.5, -1.5 / 0.75**0.5
    assert advantages_BT.flatten().tolist() == pytest.approx([up, up, up, down, 0, 0])


@pytest.mark.parametrize("name", ["grpo", "rloo", "online_dpo"])
def test_group_size_1_is_refused_except_by_reinforce(name):
    with pytest.raises(ConfigError, match=r"method\.group_size=1"):
        scripted_method(name, [[1, 0]], {"1": 1.0}, group_size=1)
    assert scripted_method("reinforce", [[1, 0]], {"1": 1.0}, group_size=1).group_size == 1


def test_engine_with_other_log_probabilities_is_refused():
    method = scripted_method("grpo", [[1, 0], [2, 0]], {"1": 1.0, "2": 0.0})
    prepared = method.prepare(prompts(2))
    method.loss_sum(prepared)
    assert logged(method, "rollout/logp_error") < 1e-5
    method.dropout = True
    prepared.logps_BT.add_(0.1)
    method.loss_sum(prepared)
    method.dropout = False
    with pytest.raises(ConfigError, match=r"sampled log-probabilities differ by 0\.1"):
        method.loss_sum(prepared)


def test_global_and_local_indices_of_a_rank_are_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda: 3)
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    # Of the items 0 to 7, the second of three ranks has 1, 4 and 7.
    assert local_indices(range(8)) == [0, 1, 2]
    assert global_indices([0, 1, 2]) == [1, 4, 7]
