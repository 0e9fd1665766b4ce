"""Sampling: tokens follow the distribution whose log-probabilities are returned."""

import pytest
import torch

from postrain.errors import ConfigError
from postrain.rollout.decode.sampling import BLOCK, allowed_logps, draw, uniforms
from postrain.types import Sampling

TENTHS = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()


def test_samples_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(40_000, 1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    tokens, logps = draw(logits, uniform, Sampling(1))
    expected = logits[0].softmax(-1)
    shares = torch.bincount(tokens, minlength=4) / 40_000
    # three standard errors of a share are at most 3 · sqrt(0.25 / 40000) = 0.0075
    assert torch.allclose(shares, expected, atol=0.0075)
    assert torch.allclose(logps, expected.log()[tokens])


@pytest.mark.parametrize("vocabulary", [5, BLOCK, BLOCK + 1, 3 * BLOCK, 1000])
def test_the_token_is_the_first_whose_cumulative_probability_exceeds_the_uniform_number(vocabulary):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(500, vocabulary, generator=generator).double()
    uniform = torch.rand(500, generator=generator).double()
    tokens, logps = draw(logits, uniform, Sampling(1))
    cumulative = logits.softmax(-1).cumsum(-1)
    assert tokens.tolist() == (cumulative <= uniform[:, None]).sum(-1).tolist()
    assert torch.allclose(logps, logits.log_softmax(-1).gather(1, tokens[:, None]).squeeze(1))


def test_excluded_tokens_are_never_drawn():
    """Also for uniform numbers 0 and 1, and if the last tokens of the vocabulary are excluded."""
    logits = torch.full((4, 200), -torch.inf)
    logits[:, [70, 130]] = torch.tensor([1.0, 0.5])
    tokens, logps = draw(logits, torch.tensor([0.0, 1 - 2**-24, 1.0, 0.3]), Sampling(1))
    assert tokens.tolist() == [70, 130, 130, 70]
    assert logps.isfinite().all()


def test_greedy_takes_the_most_likely_token_and_returns_logps_at_temperature_one():
    tokens, logps = draw(TENTHS, torch.tensor([0.99]), Sampling(1, temperature=0.0))
    assert tokens.tolist() == [0]
    assert logps.exp().tolist() == pytest.approx([0.4])


def test_top_k_and_top_p_keep_the_most_likely_tokens():
    assert allowed_logps(TENTHS, Sampling(1, top_k=2)).exp()[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    # 0.4 has not reached 0.5, so 0.3 stays; 0.7 has, so the rest goes
    assert allowed_logps(TENTHS, Sampling(1, top_p=0.5)).exp()[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert allowed_logps(TENTHS, Sampling(1, top_p=0.01)).exp()[0].tolist() == pytest.approx([1, 0, 0, 0])
    # temperature 0.5 squares the odds: 0.16 : 0.09 : 0.04 : 0.01
    squared = allowed_logps(TENTHS, Sampling(1, temperature=0.5)).exp()[0].tolist()
    assert squared == pytest.approx([0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3])


def test_min_p_excludes_tokens_below_a_fraction_of_the_largest_probability():
    # 0.6 · 0.4 = 0.24: 0.3 stays, 0.2 goes
    assert allowed_logps(TENTHS, Sampling(1, min_p=0.6)).exp()[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert allowed_logps(TENTHS, Sampling(1, min_p=1.0)).exp()[0].tolist() == pytest.approx([1, 0, 0, 0])


def test_returned_logps_are_those_after_truncation():
    tokens, logps = draw(TENTHS, torch.tensor([0.99]), Sampling(1, top_k=2))
    assert tokens.tolist() == [1]
    assert logps.exp().tolist() == pytest.approx([3 / 7])


def test_uniform_numbers_depend_on_the_seed_only():
    assert torch.equal(uniforms([3, 4, 5], 7)[1], uniforms([4], 7)[0])
    # fewer tokens are the beginning of more
    assert torch.equal(uniforms([4], 16)[0], uniforms([4], 32)[0, :16])


def test_nan_logits_give_a_valid_token():
    tokens, logps = draw(torch.full((2, 100), torch.nan), torch.tensor([0.2, 0.9]), Sampling(1))
    assert ((tokens >= 0) & (tokens < 100)).all()
    assert logps.isnan().all()


def test_an_empty_stop_text_is_refused():
    with pytest.raises(ConfigError, match=r"^rollout\.stop: expected non-empty texts[^\n]*$"):
        Sampling(1, stop=("a", ""))
