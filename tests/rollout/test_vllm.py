"""A colocated rollout=vllm with a fake vLLM: its arguments, weight transfers and the conversion of its outputs."""

import os
import sys
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.rollout.engine import Mixture, greedy
from postrain.types import Stop
from tests.rollout.fake_vllm import END, Calls, fake_vllm
from tests.tiny import tiny_model
from tests.training_runs import composed

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([5, 6, 7])]
SEEDS = [11, 2**62, 13]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm(found))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    return found


@cache
def configured() -> dict[str, Any]:
    return composed(["method=ppo", "rollout=vllm"])["rollout"]


def engine(**changes: Any) -> Any:
    return instantiate(configured() | changes)


@pytest.fixture
def model() -> Any:
    model = tiny_model()
    model.name_or_path = "some/model"
    return model


STOP = Stop((END, 3), ("=", "</calc>"), str)


def test_vllm_has_the_rank_and_leaves_it_to_no_further_run_of_the_process(calls, model, monkeypatch):
    for given, seen in ((None, "0"), ("3", "3")):
        if given:
            monkeypatch.setenv("RANK", given)
        engine().generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
        assert (calls.rank, os.environ.get("RANK")) == (seen, given)


def test_each_row_has_its_own_seed_and_all_the_same_stops(calls, model):
    engine(temperature=0.7, top_k=5, top_p=0.9, min_p=0.1, max_new_tokens=9).generate(
        model, PROMPTS, seeds=SEEDS, stop=STOP
    )
    assert calls.prompts == [[5, 6, 7], [8], [5, 6, 7]]
    assert [settings.pop("seed") for settings in calls.settings] == SEEDS
    assert calls.settings[0] == calls.settings[1] == calls.settings[2]
    assert calls.settings[0] == {
        "max_tokens": 9,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.0,
        "stop_token_ids": [END, 3],
        "stop": ["=", "</calc>"],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "logprobs": 0,
    }


def test_disabled_top_k_is_passed_as_minus_one(calls, model):
    engine().generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.settings[0]["top_k"] == -1


def test_max_tokens_of_a_row_is_its_limit(calls, model):
    found = engine().generate(model, PROMPTS, seeds=SEEDS, stop=Stop((END,), limits=(2, 1, 40)))
    assert [settings["max_tokens"] for settings in calls.settings] == [2, 1, 40]
    assert [item.ids.tolist() for item in found] == [[5, 6], [8], [5, 6, 7, END]]
    assert [item.finished for item in found] == [False, False, True]


def test_tokens_and_their_own_logps_come_back_in_order(calls, model):
    found = engine().generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert [item.ids.tolist() for item in found] == [[5, 6, 7, END], [8, END], [5, 6, 7, END]]
    assert [item.logps.tolist() for item in found] == [[-0.5, -1, -1.5, -2], [-0.5, -1], [-0.5, -1, -1.5, -2]]
    assert found[0].ids.dtype == torch.int64
    assert found[0].logps.dtype == torch.float32


def test_vllm_logps_are_not_used_as_old_logps(calls):
    assert not engine().exact_logps
    sampling = engine(stop=["."], min_p=0.25).sampling
    assert (sampling.stop, sampling.min_p) == ((".",), 0.25)


def test_weights_are_transferred_once_per_change(calls, model):
    vllm = engine()
    for _ in range(2):
        vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.events == ["weights", "reset", "check", "generate", "generate"]
    with torch.no_grad():
        model.transformer.wte.weight[3] += 1
    vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.events[5:] == ["weights", "reset", "check", "generate"]
    # The tied head has its name too.
    assert calls.weights.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)


def test_the_greedy_engine_uses_the_same_weights(calls, model):
    vllm = engine(temperature=0.7)
    vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    calls.init = {}
    greedy(vllm).generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.settings[-1]["temperature"] == 0
    assert calls.events == ["weights", "reset", "check", "generate", "generate"]
    assert not calls.init


def test_sleep_frees_memory_between_rollouts(calls, model):
    vllm = engine(sleep=True)
    for _ in range(2):
        vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.init["enable_sleep_mode"]
    assert calls.events == ["weights", "reset", "check", "generate", "sleep 1", "wake", "generate", "sleep 1"]


@pytest.mark.parametrize(
    ("changes", "reserved", "expected"),
    [
        ({}, None, ("float32", None)),
        # The longest row of the data; at most the model's 64 positions.
        ({}, 40, ("float32", 40)),
        ({}, 400, ("float32", 64)),
        ({"max_model_len": 32, "dtype": "bf16"}, 40, ("bfloat16", 32)),
        ({"dtype": "bf16-mixed"}, 40, ("bfloat16", 40)),
    ],
)
def test_the_engine_starts_from_the_policys_directory(
    calls, model, changes: dict[str, Any], reserved: int | None, expected: Sequence[Any]
):
    vllm = engine(gpu_memory_utilization=0.4, **changes)
    if reserved:
        vllm.reserve(reserved)
    vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.init == {
        "model": "some/model",
        "trust_remote_code": False,
        "dtype": expected[0],
        "gpu_memory_utilization": 0.4,
        "max_model_len": expected[1],
        "enable_sleep_mode": False,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "distributed_executor_backend": None,
    }


def test_the_precision_of_the_trainer_is_the_dtype():
    for precision in ("fp32", "bf16-mixed", "bf16"):
        config = composed(["method=ppo", "rollout=vllm", "trainer=gpu", f"trainer.precision={precision}"])
        assert config["rollout"]["dtype"] == precision


@pytest.mark.parametrize("lost", ["transformer.h.1.mlp.c_fc.weight", "transformer.wte.weight"])
def test_weights_that_did_not_arrive_are_an_error(calls, model, lost: str):
    calls.lost = (lost, "lm_head.weight")
    vllm = engine(temperature=0.7)
    for _ in range(2):  # not sampled from at a second attempt either
        with pytest.raises(ConfigError, match=r"^rollout\.mode=colocated: with the policy's weights[^\n]*nats[^\n]*$"):
            vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert "generate" not in calls.events


def test_a_prefix_cache_that_cannot_be_reset_is_an_error(calls, model):
    calls.resets = False
    with pytest.raises(ConfigError, match=r"^rollout=vllm: vLLM could not reset its prefix cache[^\n]*$"):
        engine().generate(model, PROMPTS, seeds=SEEDS, stop=STOP)


def test_a_model_without_a_directory_is_refused(calls):
    with pytest.raises(ConfigError, match="rollout=local"):
        engine().generate(tiny_model(), PROMPTS, seeds=SEEDS, stop=STOP)


def test_a_mixture_is_refused(calls, model):
    mixture = Mixture(model, SimpleNamespace(), 0.5)  # pyright: ignore[reportArgumentType] - unused
    with pytest.raises(ConfigError, match=r"mixture.*rollout=local"):
        engine().generate(mixture, PROMPTS, seeds=SEEDS, stop=STOP)


def test_missing_requirements_are_one_line_errors(calls, monkeypatch):
    for changes in ({"mode": "server"}, {"url": "http://x"}):
        with pytest.raises(ConfigError, match=r"^rollout\.url=.*rollout\.mode=server[^\n]*$"):
            engine(**changes)
    with pytest.raises(ConfigError, match=r"^rollout\.url=localhost:8000: expected an address such as http://[^\n]*$"):
        engine(mode="server", url="localhost:8000")
    with pytest.raises(ConfigError, match=r"^rollout\.enable_lora=true: [^\n]*rollout\.mode=server$"):
        engine(enable_lora=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("postrain.rollout.vllm.for_cpus", lambda: False)
    with pytest.raises(ConfigError, match=r"^rollout=vllm needs a GPU[^\n]*rollout=local[^\n]*$"):
        engine()


def test_an_empty_stop_text_is_refused(calls):
    with pytest.raises(ConfigError, match=r"^rollout\.stop: expected non-empty texts"):
        _ = engine(stop=["a", ""]).sampling
