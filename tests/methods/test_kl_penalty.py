"""The expected gradient of the KL penalty, by enumeration: that of KL(policy ‖ reference) for all that is offered.

Expectations are exact: an engine says every token as often as the policy draws it, or every completion is weighed by
its probability. Axes: V words, C completions of two tokens.
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
"""Eighths and sixteenths: eight completions hold each word as often as the policy says it."""
EIGHT = [[word] for word, times in enumerate(POLICY) for _ in range(times)]
BETA = 0.3
IN_REWARD, IN_LOSS = (
    ("ppo", "grpo", "rloo", "reinforce"),
    [(method, estimator) for method in ("ppo", "grpo", "rloo", "reinforce") for estimator in ("k2", "exact")],
)


def speaker(weights: Sequence[float]) -> Any:
    """A model in float64 that says each of its words with these odds, whatever came before."""
    config = GPT2Config(
        vocab_size=len(weights), n_layer=1, n_embd=8, n_head=1, n_positions=8, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        # The final normalisation gives its bias alone, and the head the logits of it.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(8)[0])
        model.lm_head.weight.zero_()
        model.lm_head.weight[:, 0] = torch.tensor(weights, dtype=torch.float64).log()
    return model


def logits_of(model: Any) -> Tensor:
    return model.lm_head.weight[:, 0]


def kl(policy: Any, reference: Any) -> Tensor:
    """KL(policy ‖ reference) of one word."""
    mine_V, theirs_V = (logits_of(model).log_softmax(-1) for model in (policy, reference))
    return (mine_V.exp() * (mine_V - theirs_V)).sum()


def of_head(model: Any, loss: Tensor) -> Tensor:
    """d loss / d logits of each word."""
    return torch.autograd.grad(loss, model.lm_head.weight)[0][:, 0]


def penalised_gradient(method: str, **changes: Any) -> tuple[Tensor, Tensor]:
    """What the method's loss gives for the eight completions, all of one reward, and BETA · ∇KL."""
    policy, reference = speaker(POLICY), speaker(REFERENCE)
    components = {
        "engine": ScriptedEngine(EIGHT),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(dict.fromkeys("0123", 0.0)),
    }
    groups = {"batch_size": 8} if method == "ppo" else {"batch_size": 1, "group_size": 8, "dynamic_sampling": 0}
    found = make_method(
        method, policy, reference=reference, components=components, kl_coef=BETA, **groups, **changes
    ).double()
    found.accumulated = {}
    count = groups["batch_size"]
    prepared = found.prepare(Prompts((torch.tensor([1, 2]),) * count, ("",) * count, ({},) * count, (0,) * count))
    (minibatch, *_) = found.minibatches(prepared)
    return of_head(policy, found.loss_sum(minibatch).total / 8), BETA * of_head(policy, kl(policy, reference))


@pytest.mark.parametrize(("method", "estimator"), [*IN_LOSS, ("grpo", "k3")])
def test_in_the_loss_the_gradient_is_that_of_the_kl(method, estimator):
    once = {"minibatches_per_epoch": 1, "kl_in": "loss", "kl_estimator": estimator}
    found, expected = penalised_gradient(method, **once)
    if estimator != "k3":
        assert torch.allclose(found, expected, atol=1e-6)
        assert float(found @ expected / (expected @ expected)) == pytest.approx(1.000, abs=1e-6)
        return
    # As published: that of KL(reference ‖ policy), policy − reference of each word.
    other = BETA * torch.tensor([share / 8 - ref / 16 for share, ref in zip(POLICY, REFERENCE, strict=True)])
    assert torch.allclose(found, other.double(), atol=1e-6)


@pytest.mark.parametrize("method", IN_REWARD)
def test_in_the_reward_the_gradient_is_that_of_the_kl(method):
    scale = {"scale_rewards": "none"} if method == "grpo" else {}
    found, expected = penalised_gradient(method, minibatches_per_epoch=1, kl_in="reward", kl_estimator="k1", **scale)
    shares = [share / 8 for share in POLICY]
    ratios = [math.log(share / (ref / 16)) for share, ref in zip(shares, REFERENCE, strict=True)]
    mean = sum(share * ratio for share, ratio in zip(shares, ratios, strict=True))
    spread = BETA * math.sqrt(sum(share * (ratio - mean) ** 2 for share, ratio in zip(shares, ratios, strict=True)))
    # What the method does to every reward: whitening divides by the spread, leave-one-out multiplies by 8 / 7.
    factor = {"ppo": 1 / spread, "reinforce": 1 / spread, "rloo": 8 / 7, "grpo": 1.0}[method]
    assert torch.allclose(found / factor, expected, atol=1e-6)
    assert float(found @ expected / (expected @ expected)) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize(
    ("estimator", "kl_in", "share"),
    [("k1", "reward", 1), ("k2", "loss", 1), ("exact", "loss", 1), ("exact", "reward", 0), ("k1", "loss", 0)],
)
def test_the_table_of_expected_gradients(estimator, kl_in, share):
    """The table at the top of losses/divergence.py, by enumeration over random words."""
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


@pytest.mark.parametrize("method", ["ppo", "grpo", "rloo", "reinforce"])
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


TWO = [torch.tensor(pair) for pair in product(range(4), repeat=2)]
"""Every completion of two words."""


def writer(seed: int) -> Any:
    """A model of four words whose second depends on the first."""
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=4, n_layer=1, n_embd=8, n_head=1, n_positions=8)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.5)
    return model


def token_logps_of(model: Any) -> Tensor:
    """Log-probability of each word of each completion, [C, 2]."""
    ids = torch.stack([torch.cat([torch.tensor([1, 2]), pair]) for pair in TWO])
    return model(ids).logits[:, 1:3].log_softmax(-1).gather(-1, torch.stack(TWO)[..., None]).squeeze(-1)


@pytest.mark.parametrize(("method", "estimator"), IN_LOSS)
def test_two_tokens_in_the_loss(method, estimator):
    """KL of each token given its prefix, summed over the completion (grpo, reinforce: mean of the two tokens)."""
    policy, reference = writer(0), writer(1)
    asked = make_method(
        method, policy, reference=reference, kl_coef=BETA, kl_in="loss", kl_estimator=estimator
    ).double()
    batch = rows([torch.tensor([1, 2])] * 16, TWO)
    mine, theirs = token_logps_of(policy), token_logps_of(reference).detach()
    old, still = mine.detach(), torch.zeros(16, 2, dtype=torch.float64)
    if method == "ppo":
        whole = Experience(batch, old, theirs, still, still, still, torch.ones(16, dtype=torch.bool))
    else:
        half_B = torch.full((16,), 0.5, dtype=torch.float64)
        whole = GroupExperience(batch, old, theirs, still, half_B, torch.ones(16, dtype=torch.bool))
    shares_C = old.sum(1).exp()
    total = torch.stack([share * asked.loss_sum(whole.select([c])).total for c, share in enumerate(shares_C)]).sum()
    # KL of the first word, and of the second after each first one, which is as likely as it was.
    first, second = (kl_of(model_logps(policy, length), model_logps(reference, length)) for length in (1, 2))
    shares_V = shares_C.view(4, 4).sum(1)
    expected = BETA * (first.sum() + (shares_V * second).sum()) / (1 if method in ("ppo", "rloo") else 2)
    assert torch.allclose(flat_gradient(policy, total), flat_gradient(policy, expected), atol=1e-9)


def model_logps(model: Any, length: int) -> Tensor:
    """Distributions of the first word, [1, V], or of the second after each first one, [V, V]."""
    prompts = torch.tensor([[1, 2]]) if length == 1 else torch.tensor([[1, 2, word] for word in range(4)])
    return model(prompts).logits[:, -1].log_softmax(-1)


def kl_of(mine: Tensor, theirs: Tensor) -> Tensor:
    return (mine.exp() * (mine - theirs.detach())).sum(-1)


def test_two_tokens_in_the_reward():
    """PPO's own rewards and advantages (γ = λ = 1, a critic of 0): the gradient of the whole completion's KL."""
    policy, reference = writer(0), writer(1)
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


@pytest.mark.parametrize("adapter", [False, True])
def test_the_exact_kl_is_differentiable_in_chunks_and_in_pieces(adapter, monkeypatch):
    """Over a vocabulary that does not fit a chunk, under an adapter, in micro-batches: the same KL and gradient."""
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

    def found(parts: Sequence[Sequence[int]]) -> tuple[float, Tensor]:
        total = sum(
            score_with_reference(policy, reference, batch.select(part), entropy=True).kl_BT.sum() for part in parts
        )
        assert isinstance(total, Tensor)
        learns = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        return float(total.detach()), torch.cat([g.flatten() for g in torch.autograd.grad(total, learns)])

    value, gradient = found([[0, 1, 2]])
    assert value > 0.1
    together = score_with_reference(policy, reference, batch, entropy=True)
    alone = score(policy, batch, entropy=True)
    assert together.entropy_BT is not None
    assert alone.entropy_BT is not None
    assert torch.allclose(together.entropy_BT, alone.entropy_BT)
    monkeypatch.setitem(scoring.CHUNK_ELEMENTS, "cpu", 3 * 61)
    for parts in ([[0, 1, 2]], [[0], [2, 1]]):
        other, pieces = found(parts)
        assert other == pytest.approx(value)
        assert torch.allclose(pieces, gradient, atol=1e-10)
