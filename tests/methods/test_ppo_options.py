"""Every key of PPO changes the trained weights; worked numbers of early stopping, adaptive KL and critic warm-up."""

import pytest
import torch

from tests.training_runs import final_state, records, small_run

# Two updates: the second is the first whose rollout depends on an optimizer step.
BASE = (
    "method=ppo",
    "method.updates=2",
    "rollout.max_new_tokens=12",
    "evaluation.completions=0",
    "data.eval_rows=2",
    "trainer.checkpoint_every=100",
)
CHANGES = [
    "method.epochs=1",
    "method.minibatches_per_epoch=1",
    "method.clip=0.01",
    "method.value_clip=0.0001",
    "method.value_coef=1.0",
    "method.entropy_coef=0.1",
    "method.gamma=0.9",
    "method.lam=0.5",
    "method.kl_coef=1.0",
    "method.kl_in=loss method.kl_estimator=k2",
    "method.kl_in=loss method.kl_estimator=exact",
    "method.kl_target=0.01 method.kl_horizon=20",
    "method.missing_eos_penalty=1.0",
    "method.mask_truncated_completions=true",
    "method.critic=separate",
    "method.critic_warmup=1",
    "method.learning_rate=1e-4",
    "method.schedule=linear",
    "method.warmup=1.0",
    "method.weight_decay=0.5",
    "method.adam_betas=[0.5,0.9]",
    "method.adam_eps=1e-3",
    "method.max_grad_norm=0.01",
    "rollout.temperature=0.7",
    "rollout.top_k=5",
    "rollout.top_p=0.8",
    "reward.weights.mood=0.1",
    "seed=1",
]


@pytest.fixture(scope="module")
def default_weights(tmp_path_factory):
    """The weights of a run with default settings."""
    return flat(small_run(tmp_path_factory.mktemp("base"), *BASE))


def flat(folder) -> torch.Tensor:
    """The final policy weights as one vector."""
    state = final_state(folder)["state_dict"]
    return torch.cat([value.flatten() for name, value in state.items() if name.startswith("policy.")])


@pytest.mark.parametrize("change", CHANGES)
def test_each_key_changes_the_update(change, default_weights, tmp_path):
    folder = small_run(tmp_path, *BASE, *change.split())
    assert not torch.equal(flat(folder), default_weights)
    last = records(folder)[-1]
    assert last["kl/exact"] >= -1e-6
    assert last["kl/k3"] >= -1e-6


def test_minibatch_beyond_target_kl_is_not_applied(default_weights, tmp_path):
    folder = small_run(tmp_path, *BASE, "method.target_kl=1e-6")
    state = final_state(folder)
    # The first of four mini-batches has ratio 1. The second exceeds target_kl and ends the update, in both updates.
    assert state["postrain"]["counters"]["optimizer_steps"] == 2
    assert all(record["kl/old_policy"] > 0 for record in records(folder)[1:])
    assert not torch.equal(flat(folder), default_weights)


def test_kl_coefficient_grows_when_the_kl_exceeds_its_target(tmp_path):
    found = records(small_run(tmp_path, *BASE, "method.updates=3", "method.kl_target=1e-4", "method.kl_horizon=10"))
    # KL far above the target: the coefficient grows by the maximum, 0.2 · 8 episodes / 10, from the second update on
    coefs = [record["kl/coef"] for record in found if "kl/coef" in record]
    assert coefs[2] == pytest.approx(coefs[1] * 1.16)


def test_critic_warmup_trains_only_the_critic(tmp_path):
    folder = small_run(tmp_path, *BASE, "method.critic_warmup=3")
    assert records(folder)[-1]["ratio/max"] == pytest.approx(1, abs=1e-5)
    assert float(final_state(folder)["state_dict"]["value_head.output.weight"].abs().sum()) > 0
