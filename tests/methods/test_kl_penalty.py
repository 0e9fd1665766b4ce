"""The expected gradient of the KL penalty equals that of KL(policy ‖ reference) for every allowed estimator.

Expectations are exact: either the engine returns each token in proportion to its probability, or each completion is
weighted by its probability. Axes: V words, C completions of two tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.losses.advantages import gae, token_rewards
from postrain.losses.divergence import kl as kl_estimate
from postrain.methods.group_relative import GroupExperience
from postrain.methods.ppo import Experience
from postrain.models import scoring
from postrain.models.adapters import LoRA
from postrain.models.reference import Reference
from postrain.models.scoring import score, score_with_reference
from tests.methods.builders import ScriptedEngine, flat_gradient, float64_model, make_method, pairs, rows
from tests.methods.test_rollouts import FirstTokenReward, NumberTemplate
from tests.tiny import tiny_model

POLICY, REFERENCE = (4, 2, 1, 1), (1, 1, 2, 12)
"""Probabilities in eighths and in sixteenths. Eight completions hold each word in proportion to its probability."""
EIGHT = [[word] for word, times in enumerate(POLICY) for _ in range(times)]
BETA = 0.3
METHODS = ("ppo", "grpo", "rloo", "reinforce")
IN_LOSS = [(method, estimator) for method in METHODS for estimator in ("k2", "exact")]
UNCORRECTED = [(method, {"kl_estimator": estimator}) for method, estimator in IN_LOSS]
CORRECTION = {"kl_estimator": "k3", "use_bias_correction_kl": True}
# The ratio of GSPO's loss is that of the completion, the ratio of the correction that of the token.
CORRECTED = [*((method, CORRECTION) for method in METHODS[1:]), ("grpo", {"loss": "gspo", **CORRECTION})]


def unigram_model(weights: Sequence[float]) -> Any:
    """A model in float64 whose next-word probabilities are in these proportions after any prefix."""
    config = GPT2Config(
        vocab_size=len(weights), n_layer=1, n_embd=8, n_head=1, n_positions=8, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        # The final norm outputs its bias for every input, so that the first column of the head holds the logits.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(8)[0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = torch.tensor(weights, dtype=torch.float64).log()
    return model


def logits_of(model: Any) -> Tensor:
    return model.lm_head.weight[:, 0]


def kl(policy: Any, reference: Any) -> Tensor:
    """KL(policy ‖ reference) of one word."""
    policy_V, reference_V = (logits_of(model).log_softmax(-1) for model in (policy, reference))
    return (policy_V.exp() * (policy_V - reference_V)).sum()


def logit_gradient(model: Any, loss: Tensor) -> Tensor:
    """d loss / d logits of each word."""
    return torch.autograd.grad(loss, model.lm_head.weight)[0][:, 0]


def penalised_gradient(method: str, **changes: Any) -> tuple[Tensor, Tensor]:
    """The gradient of the method's loss for eight completions of equal reward, and BETA · ∇KL."""
    policy, reference = unigram_model(POLICY), unigram_model(REFERENCE)
    components = {
        "engine": ScriptedEngine(EIGHT),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(dict.fromkeys("0123", 0.0)),
    }
    groups = {"batch_size": 8} if method == "ppo" else {"batch_size": 1, "group_size": 8, "dynamic_sampling": 0}
    learner = make_method(
        method, policy, reference=reference, components=components, kl_coef=BETA, **groups, **changes
    ).double()
    learner.accumulated = {}
    count = groups["batch_size"]
    prepared = learner.prepare(Prompts((torch.tensor([1, 2]),) * count, ("",) * count, ({},) * count, (0,) * count))
    (minibatch, *_) = learner.minibatches(prepared)
    return logit_gradient(policy, learner.loss_sum(minibatch).total / 8), BETA * logit_gradient(
        policy, kl(policy, reference)
    )


@pytest.mark.parametrize(("method", "estimator"), [*IN_LOSS, ("grpo", "k3")])
def test_penalty_in_the_loss_has_the_gradient_of_the_kl(method, estimator):
    once = {"minibatches_per_epoch": 1, "kl_in": "loss", "kl_estimator": estimator}
    found, expected = penalised_gradient(method, **once)
    if estimator != "k3":
        assert torch.allclose(found, expected, atol=1e-6)
        assert float(found @ expected / (expected @ expected)) == pytest.approx(1.000, abs=1e-6)
        return
    # k3 as published has the gradient of KL(reference ‖ policy): policy − reference of each word.
    other = BETA * torch.tensor([share / 8 - ref / 16 for share, ref in zip(POLICY, REFERENCE, strict=True)])
    assert torch.allclose(found, other.double(), atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_penalty_in_the_reward_has_the_gradient_of_the_kl(method):
    scale = {"scale_rewards": "none"} if method == "grpo" else {}
    found, expected = penalised_gradient(method, minibatches_per_epoch=1, kl_in="reward", kl_estimator="k1", **scale)
    shares = [share / 8 for share in POLICY]
    ratios = [math.log(share / (ref / 16)) for share, ref in zip(shares, REFERENCE, strict=True)]
    mean = sum(share * ratio for share, ratio in zip(shares, ratios, strict=True))
    std = BETA * math.sqrt(sum(share * (ratio - mean) ** 2 for share, ratio in zip(shares, ratios, strict=True)))
    # How a method scales rewards: whitening divides by the standard deviation, leave-one-out multiplies by 8 / 7.
    factor = {"ppo": 1 / std, "reinforce": 1 / std, "rloo": 8 / 7, "grpo": 1.0}[method]
    assert torch.allclose(found / factor, expected, atol=1e-6)
    assert float(found @ expected / (expected @ expected)) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize(
    ("estimator", "kl_in", "share"),
    [("k1", "reward", 1), ("k2", "loss", 1), ("exact", "loss", 1), ("exact", "reward", 0), ("k1", "loss", 0)],
)
def test_expected_gradients_of_estimators_match_the_documented_table(estimator, kl_in, share):
    """The table of losses/divergence.py, by enumeration over a random distribution."""
    source = torch.Generator().manual_seed(3)
    logits_V = torch.randn(7, generator=source, dtype=torch.float64, requires_grad=True)
    ref_V = torch.randn(7, generator=source, dtype=torch.float64).log_softmax(-1)
    logps_V = logits_V.log_softmax(-1)
    shares_V = logps_V.detach().exp()
    exact = (logps_V.exp() * (logps_V - ref_V)).sum()
    estimate_V = exact.expand(7) if estimator == "exact" else kl_estimate(logps_V, ref_V, estimator)
    loss = (shares_V * (estimate_V if kl_in == "loss" else estimate_V.detach() * logps_V)).sum()
    found, true = (torch.autograd.grad(value, logits_V, retain_graph=True)[0] for value in (loss, exact))
    assert torch.allclose(found, share * true, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("estimator", "kl_in", "reason"),
    [
        ("exact", "reward", "no gradient; use method.kl_in=loss"),
        ("k2", "reward", "not that of the KL; use method.kl_estimator=k1"),
        ("k3", "reward", "not that of the KL; use method.kl_estimator=k1"),
        ("k1", "loss", "its expected gradient is 0; use method.kl_in=reward"),
        ("k3", "loss", "use method.kl_estimator=exact or k2"),
    ],
)
def test_biased_kl_combinations_are_refused_with_the_reason(method, estimator, kl_in, reason):
    if (method, estimator, kl_in) == ("grpo", "k3", "loss"):
        assert make_method(method, tiny_model()).kl_estimator == "k3"  # the published default
        return
    with pytest.raises(ConfigError) as refused:
        make_method(method, tiny_model(), kl_estimator=estimator, kl_in=kl_in)
    assert str(refused.value).startswith(f"method.kl_estimator={estimator} with method.kl_in={kl_in}: ")
    assert reason in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("method", "estimator", "kl_in"), [("grpo", "k2", "loss"), ("grpo", "exact", "loss"), ("rloo", "k1", "reward")]
)
def test_correction_of_another_estimator_than_k3_is_refused(method, estimator, kl_in):
    with pytest.raises(ConfigError, match=rf"use_bias_correction_kl: corrects k3 in .*={estimator} .*={kl_in}; set .*"):
        make_method(method, tiny_model(), kl_estimator=estimator, kl_in=kl_in, use_bias_correction_kl=True)


COMPLETIONS = [torch.tensor(pair) for pair in product(range(4), repeat=2)]
"""Every completion of two words."""


def bigram_model(seed: int) -> Any:
    """A model of four words whose second word depends on the first."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_layer=1, n_embd=8, n_head=1, n_positions=8)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.5)
    return model


def token_logps_of(model: Any) -> Tensor:
    """Log-probability of each word of each completion, [C, 2]."""
    ids = torch.stack([torch.cat([torch.tensor([1, 2]), pair]) for pair in COMPLETIONS])
    return model(ids).logits[:, 1:3].log_softmax(-1).gather(-1, torch.stack(COMPLETIONS)[..., None]).squeeze(-1)


@pytest.mark.parametrize(("method", "changes"), [*UNCORRECTED, *CORRECTED])
def test_penalty_in_the_loss_of_two_tokens_has_the_gradient_of_the_kl(method, changes):
    """KL of each token given its prefix, summed over the completion (grpo, reinforce: mean of the two tokens)."""
    policy, reference = bigram_model(0), bigram_model(1)
    learner = make_method(method, policy, reference=reference, kl_coef=BETA, kl_in="loss", **changes).double()
    batch = rows([torch.tensor([1, 2])] * 16, COMPLETIONS)
    mine, theirs = token_logps_of(policy), token_logps_of(reference).detach()
    old, zeros = mine.detach(), torch.zeros(16, 2, dtype=torch.float64)
    if method == "ppo":
        whole = Experience(batch, old, theirs, zeros, zeros, zeros, torch.ones(16, dtype=torch.bool))
    else:
        half_B = torch.full((16,), 0.5, dtype=torch.float64)
        whole = GroupExperience(batch, old, theirs, zeros, half_B, torch.ones(16, dtype=torch.bool))
    shares_C = old.sum(1).exp()
    total = torch.stack([share * learner.loss_sum(whole.select([c])).total for c, share in enumerate(shares_C)]).sum()
    # KL of the first word, and of the second given each first word, weighted by the probability of the first.
    first, second = (kl_of(model_logps(policy, length), model_logps(reference, length)) for length in (1, 2))
    shares_V = shares_C.view(4, 4).sum(1)
    expected = BETA * (first.sum() + (shares_V * second).sum()) / (1 if method in ("ppo", "rloo") else 2)
    assert torch.allclose(flat_gradient(policy, total), flat_gradient(policy, expected), atol=1e-9)


def model_logps(model: Any, length: int) -> Tensor:
    """Log-probabilities of the first word, [1, V], or of the second word given each first word, [V, V]."""
    prompts = torch.tensor([[1, 2]]) if length == 1 else torch.tensor([[1, 2, word] for word in range(4)])
    return model(prompts).logits[:, -1].log_softmax(-1)


def kl_of(mine: Tensor, theirs: Tensor) -> Tensor:
    return (mine.exp() * (mine - theirs.detach())).sum(-1)


def test_penalty_in_the_reward_of_two_tokens_has_the_gradient_of_the_kl():
    """PPO's rewards and advantages with γ = λ = 1 and values of 0: the gradient of the KL of the whole completion."""
    policy, reference = bigram_model(0), bigram_model(1)
    mine, theirs = token_logps_of(policy), token_logps_of(reference).detach()
    mask = torch.ones(16, 2, dtype=torch.bool)
    k1 = kl_estimate(mine.detach(), theirs, "k1")
    rewards = token_rewards(torch.zeros(16), k1, mask, kl_coef=BETA)
    advantages = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
    shares_C = mine.detach().sum(1).exp()
    loss = -(shares_C[:, None] * advantages * mine).sum()
    mine = token_logps_of(policy)
    whole = BETA * (mine.sum(1).exp() * (mine - theirs).sum(1)).sum()
    assert torch.allclose(flat_gradient(policy, loss), flat_gradient(policy, whole), atol=1e-9)


@pytest.mark.parametrize("wider", ["policy", "reference"])
def test_logits_beyond_the_vocabulary_of_the_other_model_are_cut(wider):
    """As of two sizes of a model family, whose embeddings are padded differently."""
    batch, padded, other = pairs(3).chosen, float64_model(), float64_model(1)
    expected = score_with_reference(padded, Reference.for_policy(padded, other), batch, entropy="constant")
    other_way = score_with_reference(other, Reference.for_policy(other, padded), batch, entropy="constant")
    padded.resize_token_embeddings(70, mean_resizing=False)
    policy, reference = (padded, other) if wider == "policy" else (other, padded)
    found = score_with_reference(policy, Reference.for_policy(policy, reference), batch, entropy="constant")
    same = expected if wider == "policy" else other_way
    for name in ("logps_BT", "ref_logps_BT", "kl_BT", "entropy_BT"):
        assert torch.allclose(getattr(found, name), getattr(same, name)), name


@pytest.mark.parametrize("adapter", [False, True])
def test_exact_kl_and_its_gradient_are_independent_of_chunks_and_micro_batches(adapter, monkeypatch):
    """The vocabulary does not fit a chunk; with and without an adapter."""
    policy: Any = float64_model()
    if adapter:
        settings = {"r": 4, "alpha": 8.0, "dropout": 0.0, "rslora": False, "dora": False, "target_modules": None}
        policy = LoRA(**settings).wrap(policy, head="causal").double()
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.3)
    reference = Reference.for_policy(policy, None if adapter else float64_model(1))
    batch = pairs(3).chosen

    def kl_and_gradient(parts: Sequence[Sequence[int]]) -> tuple[float, Tensor]:
        total = sum(
            score_with_reference(policy, reference, batch.select(part), entropy="differentiable").kl_BT.sum()
            for part in parts
        )
        assert isinstance(total, Tensor)
        trainable = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        return float(total.detach()), torch.cat([g.flatten() for g in torch.autograd.grad(total, trainable)])

    value, gradient = kl_and_gradient([[0, 1, 2]])
    assert value > 0.1
    together = score_with_reference(policy, reference, batch, entropy="differentiable")
    alone = score(policy, batch, entropy="differentiable")
    assert together.entropy_BT is not None
    assert alone.entropy_BT is not None
    assert torch.allclose(together.entropy_BT, alone.entropy_BT)
    monkeypatch.setitem(scoring.CHUNK_ELEMENTS, "cpu", 3 * 61)
    for parts in ([[0, 1, 2]], [[0], [2, 1]]):
        split_value, split_gradient = kl_and_gradient(parts)
        assert split_value == pytest.approx(value)
        assert torch.allclose(split_gradient, gradient, atol=1e-10)
