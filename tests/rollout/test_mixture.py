"""Mixture sampling: recorded log-probabilities are those of the mixture of both models."""

import pytest
import torch

from postrain.models.reference import Reference
from postrain.rollout.engine import Mixture
from postrain.types import Completion, Stop
from tests.engines import adapted, engine, prompts
from tests.tiny import SHAPES, tiny_model

STOP = Stop((0, 5))


def uncached(mixture: Mixture, prompt: torch.Tensor, completion: Completion, temperature: float) -> torch.Tensor:
    """Log-probabilities of the tokens under the mixture, [T], from whole forwards of both models."""
    ids = torch.cat([prompt, completion.ids])[None]
    mine = mixture.policy(ids).logits[0, len(prompt) - 1 : -1] / temperature
    with mixture.reference.scoring() as frozen:
        theirs = frozen(ids).logits[0, len(prompt) - 1 : -1] / temperature
    mixed = (1 - mixture.coef) * mine.log_softmax(-1) + mixture.coef * theirs.log_softmax(-1)
    return mixed.log_softmax(-1).gather(-1, completion.ids[:, None]).squeeze(-1)


@torch.no_grad()
@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_logps_are_the_mixtures(architecture, temperature):
    policy = tiny_model(architecture)
    mixture = Mixture(policy, Reference(policy, tiny_model(architecture, seed=1)), 0.3)
    found = engine(temperature=temperature, batch_rows=3).generate(mixture, prompts(7), seeds=range(7), stop=STOP)
    for prompt, item in zip(prompts(7), found, strict=True):
        assert torch.allclose(item.logps, uncached(mixture, prompt, item, temperature), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("architecture", SHAPES)
def test_with_an_adapter_the_reference_is_the_model_without_it(architecture):
    policy = adapted(tiny_model(architecture))
    mixture = Mixture(policy, Reference.for_policy(policy), 0.5)
    found = engine(batch_rows=3).generate(mixture, prompts(5), seeds=range(5), stop=STOP)
    for prompt, item in zip(prompts(5), found, strict=True):
        assert torch.allclose(item.logps, uncached(mixture, prompt, item, 1.0), atol=1e-5)


@pytest.mark.parametrize("coef", [0.0, 1.0])
def test_at_its_ends_a_mixture_is_one_of_the_two(coef):
    policy, frozen = tiny_model(), tiny_model(seed=1)
    mixture = Mixture(policy, Reference(policy, frozen), coef)
    found = engine().generate(mixture, prompts(6), seeds=range(6), stop=STOP)
    alone = engine().generate(frozen if coef else policy, prompts(6), seeds=range(6), stop=STOP)
    assert [item.ids.tolist() for item in found] == [item.ids.tolist() for item in alone]
    assert all(torch.allclose(one.logps, two.logps, atol=1e-6) for one, two in zip(found, alone, strict=True))
