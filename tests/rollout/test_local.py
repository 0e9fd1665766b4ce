"""The local engine draws what the model says, whatever is decoded beside it."""

import pytest
import torch

from postrain.rollout.local import LocalEngine
from postrain.rollout.sampling import allowed_logps, draw
from postrain.types import Sampling, Stop
from tests.tiny import SHAPES, VOCABULARY, tiny_model


def engine(**changes) -> LocalEngine:
    settings = {"max_new_tokens": 12, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "stop": ()}
    settings |= {"batch_rows": 64, "dtype": "policy"}
    return LocalEngine(**(settings | changes))


def prompts(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [torch.randint(1, VOCABULARY, (length,), generator=generator) for length in lengths]


@pytest.mark.parametrize("architecture", SHAPES)
def test_greedy_equals_generate(architecture):
    model = tiny_model(architecture)
    found = engine(temperature=0.0).generate(model, prompts(6), keys=range(6), stop=Stop((0,)))
    for prompt, completion in zip(prompts(6), found, strict=True):
        alone = {"input_ids": prompt[None], "attention_mask": torch.ones_like(prompt)[None]}
        expected = model.generate(**alone, do_sample=False, max_new_tokens=12, pad_token_id=0)[0, len(prompt) :]
        assert completion.ids.tolist() == expected.tolist()
        assert completion.finished == (expected[-1] == 0)


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_logps_are_the_models_own(architecture, temperature):
    model = tiny_model(architecture)
    found = engine(temperature=temperature).generate(
        model,
        prompts(8),
        keys=range(8),
        stop=Stop(
            (
                0,
                5,
            )
        ),
    )
    for prompt, completion in zip(prompts(8), found, strict=True):
        logits = model(torch.cat([prompt, completion.ids])[None]).logits[0, len(prompt) - 1 : -1]
        logps = (logits / temperature).log_softmax(-1).gather(-1, completion.ids[:, None]).squeeze(-1)
        assert torch.allclose(completion.logps, logps, atol=1e-5)


def test_a_completion_does_not_depend_on_its_neighbours():
    model, many, keys = tiny_model(), prompts(12), [7 * i + 3 for i in range(12)]
    together = engine().generate(
        model,
        many,
        keys=keys,
        stop=Stop(
            (
                0,
                5,
                9,
            )
        ),
    )
    for cut in (engine(batch_rows=1), engine(batch_rows=5)):
        for one, other in zip(
            together,
            cut.generate(
                model,
                many,
                keys=keys,
                stop=Stop(
                    (
                        0,
                        5,
                        9,
                    )
                ),
            ),
            strict=True,
        ):
            assert one.ids.tolist() == other.ids.tolist()
            assert torch.allclose(one.logps, other.logps, atol=1e-6)
    turned = engine().generate(
        model,
        many[::-1],
        keys=keys[::-1],
        stop=Stop(
            (
                0,
                5,
                9,
            )
        ),
    )[::-1]
    assert [item.ids.tolist() for item in turned] == [item.ids.tolist() for item in together]


def test_a_group_shares_its_prompt_and_not_its_completions():
    model, prompt = tiny_model(), prompts(1)[0]
    found = engine().generate(model, [prompt] * 8, keys=range(8), stop=Stop((0,)))
    assert len({tuple(item.ids.tolist()) for item in found}) == 8


def test_a_completion_ends_with_its_first_stop_token():
    model = tiny_model()
    found = engine(max_new_tokens=40).generate(
        model,
        prompts(20),
        keys=range(20),
        stop=Stop(
            (
                3,
                4,
                5,
                6,
                7,
                8,
            )
        ),
    )
    for item in found:
        stops = [position for position, token in enumerate(item.ids.tolist()) if 3 <= token <= 8]
        assert (stops == [len(item.ids) - 1]) == item.finished
        assert item.finished or len(item.ids) == 40
    assert any(item.finished for item in found)


def test_generating_leaves_the_model_as_it_was():
    model = tiny_model().train()
    engine().generate(model, prompts(2), keys=range(2), stop=Stop((0,)))
    assert model.training


def test_samples_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]]).repeat(40_000, 1)
    uniform = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
    tokens, logps = draw(logits, uniform, Sampling(1))
    expected = logits[0].softmax(-1)
    shares = torch.bincount(tokens, minlength=4) / 40_000
    # three standard errors of a share are at most 3 · sqrt(0.25 / 40000) = 0.0075
    assert torch.allclose(shares, expected, atol=0.0075)
    assert torch.allclose(logps, expected.log()[tokens])


def test_top_k_and_top_p_keep_the_likeliest():
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    assert allowed_logps(logits, Sampling(1, top_k=2)).exp()[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    # 0.4 has not reached 0.5, so 0.3 stays; 0.7 has, so the rest goes
    assert allowed_logps(logits, Sampling(1, top_p=0.5)).exp()[0].tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert allowed_logps(logits, Sampling(1, top_p=0.01)).exp()[0].tolist() == pytest.approx([1, 0, 0, 0])
    # temperature 0.5 squares the odds: 0.16 : 0.09 : 0.04 : 0.01
    squared = allowed_logps(logits, Sampling(1, temperature=0.5)).exp()[0].tolist()
    assert squared == pytest.approx([0.16 / 0.3, 0.09 / 0.3, 0.04 / 0.3, 0.01 / 0.3])
