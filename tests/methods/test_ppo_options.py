"""Every key of PPO changes the trained weights; worked numbers of early stopping, adaptive KL and critic warm-up."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import postrain as pt
from postrain.config.schema import schema_of
from postrain.config.tree import instantiate
from postrain.methods.base import Method
from tests.test_lightning import QUIET
from tests.training_runs import SMALL, composed, final_state, one_layer, records, small_run

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
    "method.clip_low=0.01 method.clip_high=0.2",
    "method.clip_high=0.01",
    "method.value_clip=0.0001",
    "method.value_coef=1.0",
    "method.entropy_coef=0.1",
    "method.entropy_target=9 method.entropy_coef_delta=0.1",
    "method.gamma=0.9",
    "method.lam=0.5",
    "method.lam_critic=0.5",
    "method.kl_coef=1.0",
    "method.kl_in=loss method.kl_estimator=k2",
    "method.kl_in=loss method.kl_estimator=exact",
    "method.adaptive_kl_target=0.01 method.adaptive_kl_horizon=20",
    "method.missing_eos_penalty=1.0",
    "method.mask_truncated_completions=true",
    "method.critic=separate",
    "method.critic_warmup=1",
    "rollout.temperature=0.7",
    "rollout.top_k=5",
    "rollout.top_p=0.8",
    "reward.weights.mood=0.1",
]
ELSEWHERE = {
    "target_kl",
    "dual_clip",
    *(f"rollout_importance_sampling_{key}" for key in ("mode", "clip_min", "clip_max")),
}
"""Keys tested below, in test_dialects.py and in test_rollout_correction.py; those of the training loop are in
test_dpo_options.py."""


@cache
def parts() -> tuple[Any, ...]:
    """The bundled model's first layer, its tokenizer and the data, which all runs of this file share."""
    return (*pt.load_model(one_layer()), instantiate(composed([*SMALL, *BASE])["data"]))


def trained(*words: str) -> tuple[Any, dict[str, float]]:
    """The trained policy weights as one vector, and the last metrics, under a plain Trainer."""
    model, tokenizer, data = parts()
    config = composed([*SMALL, *BASE, *words])
    settings = {name: instantiate(value) for name, value in config["method"].items() if name != "_target_"}
    built = {"reward": instantiate(config["reward"]), "engine": instantiate(config["rollout"])}
    method = pt.PPO(deepcopy(model), tokenizer, **built, **settings)
    Trainer(limit_val_batches=0, **QUIET).fit(method, datamodule=data)
    return torch.cat([one.detach().flatten() for one in method.policy.parameters()]), method.last_metrics


@cache
def default_weights() -> torch.Tensor:
    """The weights of a run with default settings."""
    return trained()[0]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_each_key_changes_the_update(change):
    weights, last = trained(*change.split())
    assert not torch.equal(weights, default_weights())
    assert last["kl/exact"] >= -1e-6
    assert last["kl/k3"] >= -1e-6


def test_every_key_has_a_case():
    tried = {word.partition("=")[0].removeprefix("method.") for change in CHANGES for word in change.split()}
    assert set(schema_of(pt.PPO).keys) - set(schema_of(Method).keys) - tried == ELSEWHERE


class RecordedModes(pt.PPO):
    """PPO that records the modes of policy and critic in rollouts and in updates."""

    def prepare(self, batch: Any) -> Any:
        self.modes = [[model.training for model in self.trained_models()]]
        return super().prepare(batch)

    def update(self, minibatch: Any) -> None:
        self.modes.append([model.training for model in self.trained_models()])


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.filterwarnings("ignore::UserWarning:lightning")
def test_separate_critic_has_dropout_where_the_policy_has_it(dropout):
    model, tokenizer, data = parts()
    given = {
        "critic": "separate",
        "epochs": 1,
        "updates": 1,
        "dropout": dropout,
        "reward": lambda prompts, **_: [0.0] * len(prompts),
    }
    engine = instantiate(composed([*SMALL, *BASE])["rollout"])
    # PEFT gives models in training mode, load_model in eval mode.
    method = RecordedModes(deepcopy(model).train(not dropout), tokenizer, engine=engine, batch_size=8, **given)
    Trainer(limit_val_batches=0, **QUIET).fit(method, datamodule=data)
    assert method.modes == [[False, False], *[[dropout, dropout]] * 2]


def test_minibatch_beyond_target_kl_is_not_applied(tmp_path):
    folder = small_run(tmp_path, *BASE, "method.target_kl=1e-6")
    state = final_state(folder)
    # The first of four mini-batches has ratio 1. The second exceeds target_kl and ends the update, in both updates.
    assert state["postrain"]["counters"]["optimizer_steps"] == 2
    assert all(record["kl/old_policy"] > 0 for record in records(folder)[1:])


def test_kl_coefficient_grows_when_the_kl_exceeds_its_target(tmp_path):
    found = records(
        small_run(
            tmp_path, *BASE, "method.updates=3", "method.adaptive_kl_target=1e-4", "method.adaptive_kl_horizon=10"
        )
    )
    # KL far above the target: the coefficient grows by the maximum, 0.2 · 8 episodes / 10, from the second update on
    coefs = [record["kl/coef"] for record in found if "kl/coef" in record]
    assert coefs[2] == pytest.approx(coefs[1] * 1.16)


def test_critic_warmup_trains_only_the_critic(tmp_path):
    folder = small_run(tmp_path, *BASE, "method.critic_warmup=1")
    first, second = (record["ratio/max"] for record in records(folder))
    assert first == pytest.approx(1, abs=1e-5)
    assert second > 1.0001
    assert float(final_state(folder)["state_dict"]["value_head.output.weight"].abs().sum()) > 0
