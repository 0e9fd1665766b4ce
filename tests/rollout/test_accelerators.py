"""Decoding as on a GPU, tested on the CPU: bf16 copies under autocast, and checks of ended rows in blocks of steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from postrain.processor import supports_packed_weights
from postrain.rollout.decode import backend, fast, loop
from postrain.rollout.decode.backend import FastBackend, backend_for
from postrain.rollout.decode.cache import CacheSpec
from postrain.types import Stop
from tests.engines import adapted, engine, prompts, text
from tests.rollout.test_local import gap, same
from tests.tiny import SHAPES, tiny_model

SPEC = CacheSpec(slots=4, prompt=8, new_tokens=12, row=20)


@pytest.mark.parametrize("architecture", SHAPES)
@torch.no_grad()
def test_decode_steps_under_autocast_are_those_of_a_bf16_model(architecture):
    model, rounded = tiny_model(architecture), tiny_model(architecture)
    for parameter in rounded.parameters():  # not the buffers: rotary frequencies stay float32
        parameter.data = parameter.bfloat16()
    tokens_B, all_B = torch.tensor([3, 4, 5, 6]), torch.arange(4)
    prefilled = backend_for(rounded, spec=SPEC, dtype=None).prefill(prompts(4))

    def steps(of: Any) -> torch.Tensor:
        chosen = backend_for(of, spec=SPEC, dtype=None)
        assert isinstance(chosen, FastBackend)
        chosen.admit(prefilled, all_B, all_B)
        return torch.stack([chosen.step(tokens_B + number) for number in range(3)])

    expected = steps(rounded)
    with torch.autocast("cpu", torch.bfloat16):
        found = steps(model)
    assert found.dtype == torch.bfloat16
    if architecture in ("llama", "qwen3"):
        assert found.equal(expected)
    else:  # GPT-2 adds positions to embeddings, and Gemma 1 to the weights of norms, before they are rounded
        assert torch.allclose(found, expected, rtol=0.05, atol=0.2)
    assert next(model.parameters()).dtype == torch.float32


def test_weights_are_copied_once_per_call(monkeypatch):
    made: list[torch.dtype] = []

    def recording(model: Any, dtype: torch.dtype) -> Any:
        made.append(dtype)
        return fast.decoder_of(model, dtype)

    monkeypatch.setattr(backend, "decoder_of", recording)
    model = tiny_model()
    supports_packed_weights.cache_clear()  # tests the processor under autocast, if this is the first rollout
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            engine(batch_rows=2).generate(model, prompts(6), seeds=range(6), stop=Stop((0,)))
    assert made == [torch.float32, torch.bfloat16, torch.bfloat16], "the check of the backend, and a copy for each call"


@pytest.mark.parametrize("make", [tiny_model, lambda name: adapted(tiny_model(name))], ids=["whole", "lora"])
def test_log_probabilities_sampled_under_autocast_are_near_the_scored_ones(make):
    model = make("llama")
    with torch.autocast("cpu", torch.bfloat16):
        found = engine().generate(model, prompts(8), seeds=range(8), stop=Stop((0,)))
        assert 1e-5 < gap(model, prompts(8), found) < 0.5


@pytest.mark.parametrize("slots", [3, 64])
@pytest.mark.parametrize("stop", [Stop((0, 5)), Stop((5,), ("A", "Bd"), text), Stop(())], ids=["ids", "texts", "none"])
def test_checks_in_blocks_end_the_same_completions(slots, stop, monkeypatch):
    model, many = tiny_model("llama"), [prompt for prompt in prompts(5) for _ in range(3)]
    sampler = engine(batch_rows=slots, max_new_tokens=20)
    expected = sampler.generate(model, many, seeds=range(15), stop=stop)
    for steps in (2, 8):
        monkeypatch.setitem(loop.STEPS_PER_CHECK, "cpu", steps)
        assert same(expected, sampler.generate(model, many, seeds=range(15), stop=stop))


class HostReads(TorchDispatchMode):
    """Counts the operations that would make the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("architecture", SHAPES)
def test_the_host_reads_nothing_between_checks(architecture, monkeypatch):
    reads = {}
    for tokens in (17, 33):
        monkeypatch.setitem(loop.STEPS_PER_CHECK, "cpu", 8)
        sampler = engine(max_new_tokens=tokens, top_p=0.9, top_k=9)
        with HostReads() as mode:
            sampler.generate(tiny_model(architecture), prompts(4), seeds=range(4), stop=Stop(()))
        reads[tokens] = mode.count
    # Two more blocks of eight steps, each with one check.
    assert reads[33] - reads[17] <= 2 * 2
