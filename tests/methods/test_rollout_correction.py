"""Gradients from completions that another distribution than the policy sampled, with importance weights and without.

Axes: V words.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.models.sources import ASSETS
from postrain.types import Completion, RewardBatch, Sampling
from tests.engines import engine
from tests.methods.builders import ScriptedEngine, make_method
from tests.methods.test_kl_penalty import logit_gradient, logits_of, unigram_model
from tests.methods.test_rollouts import FirstTokenReward, NumberTemplate, logged, prompts
from tests.tiny import tiny_model

REWARDS = (1.0, 0.0, 3.0, 0.0)
SAMPLER = (2, 1, 4, 1)
"""The policy's probabilities are (4, 2, 1, 1) eighths, the sampler's these: the ratios are 2, 2, 1/4 and 1."""


class OtherSampler(ScriptedEngine):
    """Each word in proportion to its probability under SAMPLER, with that probability."""

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list:
        found = super().generate(model, prompts, seeds=seeds, stop=stop)
        return [Completion(c.ids, torch.tensor([SAMPLER[int(c.ids)] / 8]).log(), c.finished) for c in found]


def gradient(name: str, policy: Any, **changes: Any) -> Tensor:
    """d loss / d logits of a step on eight completions of OtherSampler."""
    words = [[word] for word, times in enumerate(SAMPLER) for _ in range(times)]
    components = {
        "engine": OtherSampler(words, Sampling(1), exact_logps=False),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(dict(zip("0123", REWARDS, strict=True))),
    }
    sizes = {"batch_size": 8, "minibatches_per_epoch": 1} if name == "ppo" else {"batch_size": 1, "group_size": 8}
    off = {} if name == "ppo" else {"dynamic_sampling": 0}
    scale = {"scale_rewards": "none"} if name == "grpo" else {}
    method = make_method(name, policy, components=components, kl_coef=0.0, **sizes, **off, **scale, **changes).double()
    method.accumulated, count = {}, sizes["batch_size"]
    prepared = method.prepare(Prompts((torch.tensor([1, 2]),) * count, ("",) * count, ({},) * count, (0,) * count))
    minibatch, *_ = method.minibatches(prepared)
    return logit_gradient(policy, method.loss_sum(minibatch).total / 8)


@pytest.mark.parametrize("name", ["grpo", "rloo", "reinforce", "ppo"])
def test_weighted_gradient_is_that_of_the_policys_expected_reward(name):
    policy = unigram_model((4, 2, 1, 1))
    expected = logit_gradient(policy, -(logits_of(policy).softmax(-1) * torch.tensor(REWARDS)).sum())
    # Rewards have mean 7/4 and variance 27/16 under the sampler; leave-one-out multiplies by 8 / 7.
    factor = {"ppo": (16 / 27) ** 0.5, "reinforce": (16 / 27) ** 0.5, "rloo": 8 / 7, "grpo": 1.0}[name]
    found = gradient(name, policy)
    assert torch.allclose(found / factor, expected, atol=1e-6)
    assert not torch.allclose(
        gradient(name, policy, rollout_importance_sampling_mode=None) / factor, expected, atol=0.1
    )


@dataclass
class Int8Sampler:
    """Samples one token of each completion from a copy of the model with weights rounded to 8 bits."""

    model: Any
    sampling: Sampling = field(default_factory=lambda: Sampling(1))
    exact_logps: bool = False

    @torch.no_grad()
    def logps(self, prompt: Tensor) -> Tensor:
        return self.model(prompt[None]).logits[0, -1].log_softmax(-1)

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list[Completion]:
        logps_V = self.logps(prompts[0])
        source = torch.Generator().manual_seed(seeds[0])
        drawn = torch.multinomial(logps_V.exp(), len(prompts), replacement=True, generator=source)
        return [Completion(ids, logps_V[ids], True) for ids in drawn[:, None]]


def int8(model: Any) -> Any:
    """The model with each matrix rounded to 255 values."""
    rounded = copy.deepcopy(model)
    with torch.no_grad():
        for weight in rounded.parameters():
            if weight.ndim > 1:
                scale = weight.abs().max() / 127
                weight.copy_((weight / scale).round() * scale)
    return rounded


@dataclass
class WordReward:
    """A reward for each token."""

    reward_V: Tensor

    def __call__(self, prompts: Any, completions: Any, columns: Any) -> RewardBatch:
        reward_B = self.reward_V[torch.tensor([int(text) for text in completions])]
        return RewardBatch(reward_B, {"word": tuple(reward_B.tolist())})

    def to(self, device: Any) -> None: ...


def derivatives(logps_V: Tensor, parameters: Sequence[Tensor], direction: tuple[Tensor, ...]) -> Tensor:
    """The derivative of each word's log-probability in a direction of the weights, [V]."""
    seed_V = torch.zeros_like(logps_V, requires_grad=True)
    gradients = torch.autograd.grad(logps_V @ seed_V, parameters, create_graph=True)
    return torch.autograd.grad(sum((a * b).sum() for a, b in zip(gradients, direction, strict=True)), seed_V)[0]  # type: ignore[arg-type]


def test_int8_sampler_biases_the_gradient_and_weights_remove_the_bias():
    """2,048 completions of the bundled model: the derivative of the loss in the direction of the bias against its exact
    value, a sum over the vocabulary. The reward prefers the words that rounding makes likelier."""
    count, prompt = 2048, torch.randint(1, 1000, (8,), generator=torch.Generator().manual_seed(7))
    policy = AutoModelForCausalLM.from_pretrained(ASSETS / "nano", dtype=torch.float32, attn_implementation="eager")
    sampler, parameters = Int8Sampler(int8(policy)), list(policy.parameters())
    logps_V = policy(prompt[None]).logits[0, -1].log_softmax(-1)
    policy_V, sampler_V = logps_V.detach().exp(), sampler.logps(prompt).exp()
    reward_V = (sampler_V > policy_V).float()
    advantage_V = reward_V - (sampler_V * reward_V).sum()
    direction = torch.autograd.grad(logps_V @ ((sampler_V - policy_V) * advantage_V), parameters, retain_graph=True)
    slope_V = derivatives(logps_V, parameters, direction)
    policy.set_attn_implementation("sdpa")
    exact = -(policy_V * advantage_V * slope_V).sum()

    def estimate(mode: str | None) -> tuple[float, float]:
        """The estimate's distance from the exact value, and its standard error."""
        components = {"engine": sampler, "template": NumberTemplate(), "reward": WordReward(reward_V), "seed": 1}
        method = make_method(
            "grpo",
            policy,
            components=components,
            batch_size=1,
            group_size=count,
            scale_rewards="none",
            dynamic_sampling=0,
            rollout_importance_sampling_mode=mode,
            micro_batch_tokens=256,
        )
        method.accumulated, derivative = {}, 0.0
        (minibatch,) = method.minibatches(method.prepare(Prompts((prompt,), ("",), ({},), (0,))))
        for group in method.micro_batches(minibatch):
            found = torch.autograd.grad(method.loss_sum(minibatch.select(group)).total / count, parameters)
            derivative += float(sum((a * b).sum() for a, b in zip(found, direction, strict=True)))
        terms_V = advantage_V * slope_V * (1 if mode is None else policy_V / sampler_V)
        spread = (sampler_V * terms_V**2).sum() - (sampler_V * terms_V).sum() ** 2
        return float(derivative - exact), float((spread / count).sqrt())

    bias, error = estimate(None)
    assert abs(bias) > 2 * error
    distance, error = estimate("token_truncate")
    assert abs(distance) < 2 * error


def test_engine_of_the_policys_distribution_has_no_weights():
    components = {"engine": ScriptedEngine([[1, 0], [2, 0]], exact_logps=True), "template": NumberTemplate(),
                  "reward": FirstTokenReward({"1": 1.0, "2": 0.0})}  # fmt: skip
    method = make_method("grpo", tiny_model(), components=components, batch_size=1, group_size=2, dynamic_sampling=0)
    method.accumulated = {}
    assert method.prepare(prompts(1)).importance_weights_BT is None
    assert not [name for name in method.accumulated if "is_" in name]


def test_truncated_sampling_weighs_each_token_by_the_kept_probability():
    """With top_k=2, a word's ratio is the probability of the two most likely words."""
    model = tiny_model()
    components = {"engine": engine(top_k=2, max_new_tokens=1), "template": Plain(), "reward": FirstTokenReward(ANY)}
    method = make_method("grpo", model, components=components, batch_size=1, group_size=4, dynamic_sampling=0)
    method.accumulated = {}
    prepared = method.prepare(prompts(1))
    with torch.no_grad():
        kept = model(prompts(1).ids[0][None]).logits[0, -1].softmax(-1).topk(2).values.sum()
    assert torch.allclose(prepared.importance_weights_BT, kept.expand(4, 1), atol=1e-5)
    assert logged(method, "rollout/is_mean") == pytest.approx(float(kept), abs=1e-5)
    assert method.combined(method.accumulated)["rollout/is_eff_sample_size"] == pytest.approx(1.0)


class Plain(NumberTemplate):
    """Ends no completion."""

    stop_ids = ()


ANY = {str(word): float(word % 2) for word in range(61)}


def test_completions_masked_by_their_ratio_skip_the_forward_pass():
    components = {
        "engine": OtherSampler([[0], [2]], Sampling(1), exact_logps=False),
        "template": NumberTemplate(),
        "reward": FirstTokenReward({"0": 1.0, "2": 0.0}),
    }
    method = make_method(
        "grpo",
        unigram_model((4, 2, 1, 1)),
        components=components,
        batch_size=1,
        group_size=2,
        dynamic_sampling=0,
        rollout_importance_sampling_mode="sequence_mask",
        rollout_importance_sampling_clip_max=1.5,
    )
    method.accumulated = {}
    prepared = method.prepare(Prompts((torch.tensor([1, 2]),), ("",), ({},), (0,)))
    assert prepared.in_loss_B.tolist() == [False, True]
    assert logged(method, "rollout/is_clipped") == 0.5
    assert logged(method, "rollout/is_max") == pytest.approx(2.0)


def test_bounds_in_the_wrong_order_are_one_line():
    with pytest.raises(ConfigError, match=r"^method\.rollout_importance_sampling_clip_min=4: [^\n]*clip_max=3$"):
        make_method("ppo", tiny_model(), rollout_importance_sampling_clip_min=4.0)
