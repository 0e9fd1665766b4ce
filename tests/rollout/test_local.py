"""LocalEngine: samples follow the model and do not depend on the other rows."""

import pytest
import torch

from postrain import processor
from postrain.errors import ConfigError
from postrain.models.scoring import score
from postrain.rollout.decode import timing, weights
from postrain.rollout.decode.backend import FastBackend, PaddedBackend, SlotBackend, backend_for
from postrain.rollout.decode.cache import CacheSpec
from postrain.rollout.decode.timing import DecodeTime, decode_time
from postrain.seeds import derive_seed
from postrain.types import Completion, Rows, Sampling, Stop
from tests.engines import adapted, engine, prompts, text
from tests.tiny import SHAPES, tiny_model

SPEC = CacheSpec(slots=2, prompt=8, new_tokens=12, row=20)


@pytest.mark.parametrize("architecture", SHAPES)
def test_greedy_equals_generate(architecture):
    model = tiny_model(architecture)
    found = engine(temperature=0.0).generate(model, prompts(6), seeds=range(6), stop=Stop((0,)))
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
        seeds=range(8),
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


@pytest.mark.parametrize("architecture", SHAPES)
def test_recorded_logps_are_the_models_own_with_an_adapter(architecture):
    model = adapted(tiny_model(architecture))
    found = engine().generate(model, prompts(6), seeds=range(6), stop=Stop((0,)))
    assert gap(model, prompts(6), found) <= 1e-5


def gap(model, batch: list[torch.Tensor], found: list[Completion]) -> float:
    """Largest difference between recorded log-probabilities and those of the scorer."""
    rows = Rows(
        ids=tuple(torch.cat([prompt, item.ids]) for prompt, item in zip(batch, found, strict=True)),
        supervised=tuple(
            torch.arange(len(prompt) + len(item.ids)) >= len(prompt) for prompt, item in zip(batch, found, strict=True)
        ),
        row_ids=tuple(range(len(batch))),
    )
    with torch.no_grad():
        scored = score(model, rows)
    return max(
        float((item.logps - logps[: len(item.logps)]).abs().max())
        for item, logps in zip(found, scored.logps_BT, strict=True)
    )


def same(one: list[Completion], other: list[Completion]) -> bool:
    """The same tokens, with the same log-probabilities but for rounding."""
    return all(
        mine.ids.tolist() == theirs.ids.tolist()
        and mine.finished == theirs.finished
        and torch.allclose(mine.logps, theirs.logps, atol=1e-5)
        for mine, theirs in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"top_p": 0.8}, {"min_p": 0.1, "top_k": 9}])
def test_a_completion_does_not_depend_on_its_neighbours(architecture, settings):
    """Nor on the number of slots, the step of its admission or the order of prompts."""
    model, many = tiny_model(architecture), [prompt for prompt in prompts(5) for _ in range(3)]
    seeds, stop = [7 * i + 3 for i in range(15)], Stop((0, 5, 9))
    together = engine(**settings).generate(model, many, seeds=seeds, stop=stop)
    assert settings or len({len(item.ids) for item in together}) > 1
    for slots in (1, 4):
        assert same(together, engine(**settings, batch_rows=slots).generate(model, many, seeds=seeds, stop=stop))
    turned = engine(**settings, batch_rows=4).generate(model, many[::-1], seeds=seeds[::-1], stop=stop)[::-1]
    assert same(together, turned)


@pytest.mark.parametrize("architecture", SHAPES)
def test_all_decode_backends_sample_the_same_tokens(architecture):
    model, many = tiny_model(architecture), prompts(9)
    usual = engine(batch_rows=4).generate(model, many, seeds=range(9), stop=Stop((0, 5)))
    for slower in (FastBackend, SlotBackend):
        model.decode_backends[slower] = False
        assert same(usual, engine(batch_rows=4).generate(model, many, seeds=range(9), stop=Stop((0, 5))))


def test_each_architecture_gets_its_fastest_backend():
    backends = {name: type(backend_for(tiny_model(name), spec=SPEC, dtype=None)) for name in SHAPES}
    assert backends == dict.fromkeys(SHAPES, FastBackend)


def test_a_backend_with_other_logits_is_not_used():
    model = tiny_model("llama")
    # As in Granite: a factor of the logits that fast.py does not apply.
    model.lm_head.register_forward_hook(lambda layer, given, logits: logits * 2)
    assert type(backend_for(model, spec=SPEC, dtype=None)) is SlotBackend
    model.model.layers[0].register_forward_pre_hook(refuse_masks, with_kwargs=True)
    del model.decode_backends
    assert isinstance(backend_for(model, spec=SPEC, dtype=None), PaddedBackend)


def refuse_masks(layer, given, named):
    if named["attention_mask"] is not None and named["attention_mask"].dtype == torch.bool:
        raise ValueError("no such mask")


def test_a_group_prefills_its_prompt_once():
    model, (first, second) = tiny_model(), prompts(2)
    prefilled: list[int] = []
    model.transformer.register_forward_pre_hook(
        lambda layer, args, named: prefilled.append(len(named.get("input_ids", *args))), with_kwargs=True
    )
    backend_for(model, spec=SPEC, dtype=None)
    prefilled.clear()
    # Three slots for ten rows: both groups are split between refills. Single tokens do not pass through this hook.
    found = engine(batch_rows=3).generate(model, [first] * 5 + [second] * 5, seeds=range(10), stop=Stop((0, 5)))
    assert sum(prefilled) == 2
    assert len(found) == 10


def test_a_group_shares_its_prompt_and_not_its_completions():
    model, prompt = tiny_model(), prompts(1)[0]
    found = engine().generate(model, [prompt] * 8, seeds=range(8), stop=Stop((0,)))
    assert len({tuple(item.ids.tolist()) for item in found}) == 8


def test_a_completion_ends_with_its_first_stop_token():
    model = tiny_model()
    found = engine(max_new_tokens=40).generate(
        model,
        prompts(20),
        seeds=range(20),
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
    engine().generate(model, prompts(2), seeds=range(2), stop=Stop((0,)))
    assert model.training


def test_generate_without_prompts_is_empty():
    assert engine().generate(tiny_model(), [], seeds=[], stop=Stop((0,))) == []


def test_a_completion_of_one_token():
    everything = tuple(range(61))
    for slots in (1, 3, 64):
        found = engine(batch_rows=slots).generate(tiny_model(), prompts(7), seeds=range(7), stop=Stop(everything))
        assert [(len(item.ids), item.finished) for item in found] == [(1, True)] * 7


def test_completions_without_an_end_token_reach_the_limit():
    found = engine(batch_rows=3).generate(tiny_model(), prompts(7), seeds=range(7), stop=Stop(()))
    assert [(len(item.ids), item.finished) for item in found] == [(12, False)] * 7


def test_a_prompt_beyond_the_context_is_refused():
    # 53 + 12 = 65 positions of 64
    with pytest.raises(ConfigError, match=r"rollout.max_new_tokens=12: a prompt of 53 tokens .* 64 positions"):
        engine().generate(tiny_model(), [torch.ones(53, dtype=torch.long)], seeds=[0], stop=Stop(()))
    assert engine().generate(tiny_model(), [torch.ones(52, dtype=torch.long)], seeds=[0], stop=Stop(()))


@pytest.mark.parametrize("slots", [2, 64])
def test_a_completion_ends_with_its_first_stop_text(slots):
    """The stopped completion is the free one, truncated where its text first contains a stop text."""
    model, many, texts = tiny_model(), prompts(20), ("A", "Bd", "zzz")
    free = engine(max_new_tokens=30).generate(model, many, seeds=range(20), stop=Stop(()))
    settings = engine(max_new_tokens=30, batch_rows=slots)
    found = settings.generate(model, many, seeds=range(20), stop=Stop((), texts, text))
    for whole, item in zip(free, found, strict=True):
        ends = [n for n in range(1, 31) if any(stop in text(whole.ids[:n]) for stop in texts)]
        assert item.ids.tolist() == whole.ids[: min(ends, default=30)].tolist()
        assert item.finished == bool(ends)
    assert {item.finished for item in found} == {True}


def test_a_stop_text_that_is_never_reached():
    found = engine().generate(tiny_model(), prompts(4), seeds=range(4), stop=Stop((), ("never",), text))
    assert [(len(item.ids), item.finished) for item in found] == [(12, False)] * 4


@pytest.fixture
def without_bf16_instructions(monkeypatch):
    """oneDNN on a processor with AVX2 and without AVX-512: it rejects bfloat16 weights."""

    class Operators:
        def _reorder_linear_weight(self, weight, rows):
            if weight.dtype is torch.bfloat16:
                raise RuntimeError("bf16 path needs the cpu support avx_ne_convert or avx512bw, avx512vl and avx512dq")
            return torch.ops.mkldnn._reorder_linear_weight(weight, rows)

        _linear_pointwise = torch.ops.mkldnn._linear_pointwise

    for module in (processor, weights):
        monkeypatch.setattr(module, "ONEDNN", Operators())
    for function in (processor.supports_packed_weights, processor.warn_if_slow):
        function.cache_clear()
    yield
    for function in (processor.supports_packed_weights, processor.warn_if_slow):
        function.cache_clear()


def test_bfloat16_sampling_without_bf16_instructions_gives_the_same_tokens_and_one_warning(
    without_bf16_instructions, capsys
):
    assert not processor.supports_packed_weights(torch.bfloat16)
    model = tiny_model("llama")
    found = [engine(dtype="bf16").generate(model, prompts(8), seeds=range(8), stop=Stop((0,))) for _ in range(2)]
    assert same(*found)
    assert 1e-5 < gap(model, prompts(8), found[0]) < 0.5
    assert capsys.readouterr().err.count("warning: rollout.dtype: bf16 is slow on this processor") == 1


def test_a_processor_without_any_onednn_operator_samples_with_plain_products(monkeypatch):
    expected = engine().generate(tiny_model("llama"), prompts(4), seeds=range(4), stop=Stop((0,)))
    for module in (processor, weights):
        monkeypatch.setattr(module, "ONEDNN", object())
    processor.supports_packed_weights.cache_clear()
    found = engine().generate(tiny_model("llama"), prompts(4), seeds=range(4), stop=Stop((0,)))
    processor.supports_packed_weights.cache_clear()
    assert same(expected, found)


@pytest.mark.parametrize("architecture", SHAPES)
def test_in_bfloat16_log_probabilities_are_near_the_policys(architecture):
    model = tiny_model(architecture)
    rounded = engine(dtype="bf16")
    found = rounded.generate(model, prompts(8), seeds=range(8), stop=Stop((0,)))
    # bfloat16 has eight significant bits, and these weights are far larger than a trained model's.
    assert 1e-5 < gap(model, prompts(8), found) < 0.5
    assert next(model.parameters()).dtype == torch.float32


def test_exact_logps_is_false_with_truncation_or_lower_precision():
    assert engine().exact_logps
    assert engine(temperature=0.7).exact_logps
    for cut in ({"dtype": "bf16"}, {"dtype": "int8"}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}):
        assert not engine(**cut).exact_logps


def test_derived_seeds_are_accepted_and_determine_the_completion():
    seeds = [derive_seed(1, "rollout", i) for i in range(3)]
    found = engine().generate(tiny_model(), [prompts(1)[0]] * 3, seeds=seeds, stop=Stop(()))
    again = engine().generate(tiny_model(), [prompts(1)[0]], seeds=seeds[1:2], stop=Stop(()))
    assert same(found[1:2], again)


@pytest.mark.parametrize("architecture", SHAPES)
def test_int8_sampling_is_that_of_slightly_different_weights(architecture):
    model = tiny_model(architecture)
    found = engine(dtype="int8").generate(model, prompts(8), seeds=range(8), stop=Stop((0,)))
    again = engine(dtype="int8").generate(model, prompts(8), seeds=range(8), stop=Stop((0,)))
    assert same(found, again)
    # As with bf16: these weights are far larger than a trained model's.
    assert 1e-5 < gap(model, prompts(8), found) < 0.5


def test_int8_products_are_those_of_rounded_weights_and_inputs():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 8), torch.randn(4, 8), torch.randn(4)
    weight[0] = 0
    scales = (weight.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
    # Inputs are rounded to a multiple of (largest − smallest) / 255, or / 127 without VNNI instructions.
    steps = 255 if torch.cpu._is_vnni_supported() else 127
    step = (x.max() - x.min()) / steps
    zero = (-x.min() / step).round()
    rounded = (((x / step).round() + zero).clamp(0, steps) - zero) * step
    expected = rounded @ ((weight / scales).round() * scales).T + bias
    found = processor.int8_linear(x, processor.pack_int8(weight, bias))
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.equal(found[:, 0], bias[0].expand(3))
    assert processor.supports_int8()


def test_int8_weights_are_rounded_as_by_quantize_per_channel():
    torch.manual_seed(0)
    weight = torch.randn(64, 96) * torch.logspace(-4, 2, 64)[:, None]
    scales = weight.abs().amax(1) / 127
    found = torch.ops.quantized.linear_unpack(processor.pack_int8(weight, None))[0]
    expected = torch.quantize_per_channel(weight, scales, torch.zeros(64, dtype=torch.long), 0, torch.qint8)
    assert torch.equal(found.int_repr(), expected.int_repr())
    assert torch.equal(found.q_per_channel_scales(), expected.q_per_channel_scales())


def test_decode_times_are_of_each_precision_that_runs_fast_here(monkeypatch):
    monkeypatch.setattr(timing, "ROUND", 0.0)
    model, before = tiny_model("llama"), torch.get_rng_state()
    found = engine().decode_times(model, prompts(8))
    bf16 = ["bf16"] if processor.supports_packed_weights(torch.bfloat16) else []
    assert [*found] == ["policy", *bf16, "int8"]
    assert torch.equal(torch.get_rng_state(), before)
    with torch.autocast("cpu", torch.bfloat16):
        # The policy's precision is bf16.
        assert [*engine().decode_times(model, prompts(8))] == ["policy", "int8"]
    model.decode_backends = {FastBackend: False}
    assert engine().decode_times(model, prompts(8)) == {}


def test_decode_times_leave_out_bf16_without_its_instructions(without_bf16_instructions, monkeypatch):
    monkeypatch.setattr(timing, "ROUND", 0.0)
    assert [*engine().decode_times(tiny_model("llama"), prompts(8))] == ["policy", "int8"]


def test_decode_time_is_that_of_the_copy_and_of_the_fastest_step():
    # Read before and after the copy, which takes 3, and steps that take 1/16 and 3/64: together more than ENOUGH.
    clock = iter([0.0, 3.0, 10.0, 10 + 1 / 16, 20.0, 20 + 3 / 64])
    spec = CacheSpec(slots=4, prompt=8, new_tokens=12, row=20)
    found = decode_time(tiny_model("llama"), prompts(6), spec, Sampling(12), torch.int8, lambda: next(clock))
    assert found == DecodeTime(copying=3.0, step=3 / 64)
    assert found | DecodeTime(copying=2.0, step=0.5) == DecodeTime(copying=2.0, step=3 / 64)


def test_auto_samples_in_the_policys_precision_until_a_run_replaces_it():
    model = tiny_model("llama")
    auto, policy = (engine(dtype=dtype) for dtype in ("auto", "policy"))
    assert auto.exact_logps
    found = [one.generate(model, prompts(4), seeds=range(4), stop=Stop((0,))) for one in (auto, policy)]
    assert same(*found)


def test_int8_without_a_fast_decoder_is_refused():
    model = tiny_model("llama")
    model.decode_backends = {FastBackend: False}
    with pytest.raises(ConfigError, match=r"rollout\.dtype=int8: LlamaForCausalLM has no fast decoder here"):
        engine(dtype="int8").generate(model, prompts(2), seeds=range(2), stop=Stop((0,)))
