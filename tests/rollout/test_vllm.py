"""rollout=vllm with a fake vLLM: its arguments, weight transfers and the conversion of its outputs.

The fake is a module named vllm with a deterministic LLM; the server is an HTTP server on loopback.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.rollout.engine import Mixture, greedy
from postrain.types import Stop
from tests.tiny import tiny_model
from tests.training_runs import composed

END = 0
PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([5, 6, 7])]
SEEDS = [11, 2**62, 13]


@dataclass
class Calls:
    """Arguments and events recorded by the fake vLLM, in order."""

    init: dict[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)


def complete(prompt: list[int], settings: Mapping[str, Any]) -> tuple[list[int], list[float], str]:
    """Tokens, log-probabilities and finish reason: the prompt's tokens and the end token, up to max_tokens."""
    ids = [*prompt, END][: settings["max_tokens"]]
    return ids, [-0.5 * (i + 1) for i in range(len(ids))], "stop" if ids[-1] == END else "length"


def fake_vllm(calls: Calls) -> ModuleType:
    """A module with the part of vLLM that the engine uses."""

    class LLM:
        def __init__(self, **settings: Any) -> None:
            calls.init = settings

        def apply_model(self, function: Any) -> list[Any]:
            calls.events.append("weights")
            return [function(SimpleNamespace(load_weights=lambda weights: calls.weights.update(weights)))]

        def reset_prefix_cache(self) -> None:
            calls.events.append("reset")

        def sleep(self, level: int) -> None:
            calls.events.append(f"sleep {level}")

        def wake_up(self) -> None:
            calls.events.append("wake")

        def generate(self, prompts: list[Any], settings: list[Any], use_tqdm: bool) -> list[Any]:
            calls.events.append("generate")
            calls.prompts = [prompt["prompt_token_ids"] for prompt in prompts]
            calls.settings = [vars(values) for values in settings]
            found = [complete(prompt, values) for prompt, values in zip(calls.prompts, calls.settings, strict=True)]
            return [SimpleNamespace(outputs=[output(*one)]) for one in found]

    def output(ids: list[int], logps: list[float], reason: str) -> Any:
        # vLLM may return log-probabilities of other tokens besides the sampled one.
        known = [
            {99: SimpleNamespace(logprob=-9.0), i: SimpleNamespace(logprob=p)} for i, p in zip(ids, logps, strict=True)
        ]
        return SimpleNamespace(token_ids=tuple(ids), logprobs=known, finish_reason=reason)

    module: Any = ModuleType("vllm")
    module.__spec__ = SimpleNamespace(name="vllm")
    module.LLM, module.SamplingParams, module.TokensPrompt = LLM, SimpleNamespace, dict
    return module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()
    monkeypatch.setitem(sys.modules, "vllm", fake_vllm(found))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("RANK", "VLLM_ENABLE_V1_MULTIPROCESSING"):
        monkeypatch.setenv(name, "0")
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
    assert calls.events == ["weights", "reset", "generate", "generate"]
    with torch.no_grad():
        model.transformer.wte.weight[3] += 1
    vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.events[4:] == ["weights", "reset", "generate"]
    assert calls.weights.keys() == dict(model.named_parameters()).keys()
    assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)


def test_the_greedy_engine_uses_the_same_weights(calls, model):
    vllm = engine(temperature=0.7)
    vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    calls.init.clear()
    greedy(vllm).generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.settings[0]["temperature"] == 0
    assert calls.events == ["weights", "reset", "generate", "generate"]
    assert not calls.init


def test_sleep_frees_memory_between_rollouts(calls, model):
    vllm = engine(sleep=True)
    for _ in range(2):
        vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.init["enable_sleep_mode"]
    assert calls.events == ["weights", "reset", "generate", "sleep 1", "wake", "generate", "sleep 1"]


def test_the_engine_starts_from_the_policys_directory_and_type(calls, model):
    engine(gpu_memory_utilization=0.4, max_model_len=256).generate(model.bfloat16(), PROMPTS, seeds=SEEDS, stop=STOP)
    assert calls.init == {
        "model": "some/model",
        "trust_remote_code": False,
        "dtype": "bfloat16",
        "gpu_memory_utilization": 0.4,
        "max_model_len": 256,
        "enable_sleep_mode": False,
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "distributed_executor_backend": None,
    }


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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"^rollout=vllm needs a GPU[^\n]*rollout=local[^\n]*$"):
        engine()


def test_an_empty_stop_text_is_refused(calls):
    with pytest.raises(ConfigError, match=r"^rollout\.stop: expected non-empty texts"):
        _ = engine(stop=["a", ""]).sampling


# A server -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(calls: Calls) -> Iterator[str]:
    """A server with vLLM's HTTP API; requests are recorded in `calls`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answers = {"/v1/models": {"data": [{"id": "served"}]}, "/get_world_size": {"world_size": 2}}
            self.respond(answers[self.path])

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            calls.events.append(self.path)
            if self.path != "/v1/completions":
                return self.respond(None)
            if request["prompt"] == [8]:
                return self.respond({"message": "too\nlong"}, 400) if request["seed"] == 666 else self.complete(request)
            return self.complete(request)

        def complete(self, request: dict[str, Any]) -> None:
            calls.settings.append(request)
            ids, logps, reason = complete(request["prompt"], request)
            choice = {"token_ids": ids, "logprobs": {"token_logprobs": logps}, "finish_reason": reason}
            self.respond({"choices": [choice]})

        def respond(self, body: Any, status: int = 200) -> None:
            text = b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, format: str, *args: Any) -> None:
            """Writes no log."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/"
    listening.shutdown()
    listening.server_close()


@pytest.fixture
def transfer(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake of vLLM's weight transfer: reads the metadata of the source, then its tensors."""

    class Factory:
        @staticmethod
        def trainer_init(*, init_info: Any, client: Any, source: Any) -> Any:
            calls.init = {**vars(init_info), "client": client}

            def send_weights() -> None:
                calls.events.append("weights")
                described = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
                assert described == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
                calls.weights.update(source)

            return SimpleNamespace(send_weights=send_weights)

    package, nccl, network = (ModuleType(name) for name in ("weight_transfer", "nccl_engine", "network_utils"))
    vars(package).update(
        WeightTransferTrainerFactory=Factory,
        HTTPVLLMWeightSyncClient=lambda url, timeout: (url, timeout),
        ParamMeta=lambda name, dtype, shape: SimpleNamespace(name=name, dtype=dtype, shape=shape),
    )
    vars(nccl).update(NCCLTrainerInitInfo=SimpleNamespace)
    vars(network).update(get_ip=lambda: "10.0.0.1", get_open_port=lambda: 4321)
    monkeypatch.setitem(sys.modules, "vllm.distributed", ModuleType("distributed"))
    monkeypatch.setitem(sys.modules, "vllm.utils", ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer", package)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_engine", nccl)
    monkeypatch.setitem(sys.modules, "vllm.utils.network_utils", network)


@pytest.mark.usefixtures("transfer")
def test_server_completions_come_back_in_order(calls, server, model):
    vllm = engine(mode="server", url=server, timeout=7.0)
    found = vllm.generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
    assert [item.ids.tolist() for item in found] == [[5, 6, 7, END], [8, END], [5, 6, 7, END]]
    assert [item.logps.tolist() for item in found] == [[-0.5, -1, -1.5, -2], [-0.5, -1], [-0.5, -1, -1.5, -2]]
    assert all(item.finished for item in found)
    assert {request["seed"] for request in calls.settings} == set(SEEDS)
    for request in calls.settings:
        assert (request["model"], request["return_token_ids"], request["logprobs"]) == ("served", True, 0)
        assert (request["stop_token_ids"], request["stop"]) == ([END, 3], ["=", "</calc>"])
    # Two workers of the server, and this process.
    assert calls.init == {
        "master_address": "10.0.0.1",
        "master_port": 4321,
        "world_size": 3,
        "rank": 0,
        "client": (server.rstrip("/"), 7.0),
    }


@pytest.mark.usefixtures("transfer")
def test_a_server_gets_weights_before_prompts_and_once_for_each_change(calls, server, model):
    vllm = engine(mode="server", url=server)
    for _ in range(2):
        vllm.generate(model, PROMPTS[:1], seeds=SEEDS[:1], stop=STOP)
    assert calls.events == ["weights", "/reset_prefix_cache", "/v1/completions", "/v1/completions"]
    with torch.no_grad():
        model.transformer.wte.weight[3] += 1
    vllm.generate(model, PROMPTS[:1], seeds=SEEDS[:1], stop=STOP)
    assert calls.events[4:] == ["weights", "/reset_prefix_cache", "/v1/completions"]
    assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)


@pytest.mark.usefixtures("transfer")
def test_an_http_error_is_a_one_line_error(server, model):
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*/v1/completions was refused \(400\)[^\n]*$"):
        engine(mode="server", url=server).generate(model, PROMPTS[1:2], seeds=[666], stop=STOP)


def test_an_unreachable_server_is_a_one_line_error(calls, model):
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*cannot be reached[^\n]*vllm serve[^\n]*$"):
        engine(mode="server", url="http://127.0.0.1:9").generate(model, PROMPTS, seeds=SEEDS, stop=STOP)
