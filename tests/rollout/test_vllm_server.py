"""rollout=vllm with a fake vLLM server: requests, weight transfers, restarts and errors."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.rollout import vllm_http, vllm_transfer
from postrain.types import Stop
from tests.models.test_weight_sync import adapted
from tests.rollout.fake_vllm import END, SIGNATURES, Calls, Handler, checked, fake_server
from tests.tiny import tiny_model
from tests.training_runs import composed

PROMPTS = [torch.tensor([5, 6, 7]), torch.tensor([8]), torch.tensor([5, 6, 7])]
SEEDS = [11, 2**62, 13]
STOP = Stop((END, 3), ("=", "</calc>"), str)
LOADED = ["weights", "/reset_prefix_cache", "/update_weight_version", "check"]
"""Events of a transfer of weights, with one prompt."""


@pytest.fixture
def calls() -> Calls:
    return Calls()


@pytest.fixture
def server(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Handler]]]:
    monkeypatch.setattr(vllm_http, "POLL", 0.01)
    with fake_server(calls) as found:
        yield found


def engine(url: str | list[str], **changes: Any) -> Any:
    given = {"mode": "server", "url": url, "server_timeout": 0.0, "timeout": 7.0, **changes}
    return instantiate(composed(["method=ppo", "rollout=vllm"])["rollout"] | given)


def sample(vllm: Any, model: Any, rows: int = 1, seeds: list[int] = SEEDS) -> list[Any]:
    return vllm.generate(model, PROMPTS[:rows], seeds=seeds[:rows], stop=STOP)


def change(model: Any) -> None:
    with torch.no_grad():
        model.transformer.wte.weight[3] += 1


def test_completions_come_back_in_order(calls, server):
    found = sample(engine(server[0]), tiny_model(), rows=3)
    assert [item.ids.tolist() for item in found] == [[5, 6, 7, END], [8, END], [5, 6, 7, END]]
    assert [item.logps.tolist() for item in found] == [[-0.5, -1, -1.5, -2], [-0.5, -1], [-0.5, -1, -1.5, -2]]
    assert all(item.finished for item in found)
    assert {request["seed"] for request in calls.settings} == set(SEEDS)
    for request in calls.settings:
        assert (request["model"], request["return_token_ids"], request["logprobs"]) == ("served", True, 0)
        assert (request["stop_token_ids"], request["stop"]) == ([END, 3], ["=", "</calc>"])


def test_weights_are_sent_before_prompts_and_once_for_each_change(calls, server, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_transfer, "SHARD", 20_000)  # several files
    model = tiny_model()
    vllm = engine(server[0], transfer_dir=str(tmp_path))
    for _ in range(2):
        sample(vllm, model)
    files = calls.events.count("weights")
    assert files > 1
    assert calls.events[files - 1 :] == [*LOADED, "/v1/completions", "/v1/completions"]
    calls.events.clear()
    change(model)
    sample(vllm, model)
    assert calls.events[files - 1 :] == [*LOADED, "/v1/completions"]
    assert calls.weights.keys() == dict(model.named_parameters(remove_duplicate=False)).keys()
    assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)
    assert not list(tmp_path.iterdir())


def test_weights_are_sent_in_the_servers_dtype(calls, server):
    sample(engine(server[0], dtype="bf16-mixed"), tiny_model())
    assert {values.dtype for values in calls.weights.values()} == {torch.bfloat16}


@pytest.mark.parametrize("path", ["/weight_info", "/v1/completions", "/reset_prefix_cache", "/collective_rpc"])
def test_a_server_that_restarts_gets_the_weights_again(calls, server, path: str):
    url, handler = server
    model = tiny_model()
    vllm = engine(url, server_timeout=5.0)
    first = sample(vllm, model)
    if path not in ("/weight_info", "/v1/completions"):
        change(model)
    calls.events.clear()
    handler.restart_at = path
    again = sample(vllm, model)
    assert [item.ids.tolist() for item in again] == [item.ids.tolist() for item in first]
    assert calls.events[-5:] == [*LOADED, "/v1/completions"]
    assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)


def test_a_server_restarted_between_rollouts_gets_the_weights_again(calls, server, capsys):
    model = tiny_model()
    vllm = engine(server[0])
    sample(vllm, model)
    calls.version = "default"
    calls.weights.clear()
    calls.events.clear()
    sample(vllm, model)
    assert calls.events == [*LOADED, "/v1/completions"]
    assert "has other weights (a restart?) and gets the policy's again" in capsys.readouterr().err


def test_a_lora_adapter_is_sent_as_an_adapter_and_the_base_weights_once(calls, server):
    policy = adapted("gpt2")
    vllm = engine(server[0], enable_lora=True)
    sample(vllm, policy)
    base = policy.get_base_model().transformer.wte.weight
    assert calls.events == [LOADED[0], "/v1/load_lora_adapter", *LOADED[1:], "/v1/completions"]
    assert calls.weights["transformer.wte.weight"].equal(base)
    assert calls.settings[-1]["model"] == next(iter(calls.adapters))
    calls.events.clear()
    with torch.no_grad():
        next(p for name, p in policy.named_parameters() if "lora_B" in name).add_(0.1)
    sample(vllm, policy)
    replaced = ["/v1/load_lora_adapter", "/v1/unload_lora_adapter", *LOADED[1:]]
    assert calls.events == [*replaced, "/v1/completions"]
    assert len(calls.adapters) == 1
    with policy.disable_adapter():  # the initial policy
        sample(vllm, policy)
    assert calls.settings[-1]["model"] == "served"
    calls.version = "default"  # a restart
    calls.weights.clear()
    calls.adapters.clear()
    calls.events.clear()
    sample(vllm, policy)
    assert calls.events == [LOADED[0], "/v1/load_lora_adapter", *LOADED[1:], "/v1/completions"]


@pytest.mark.parametrize(("changes", "word"), [({"dora": True}, "use_dora"), (None, "no adapter")])
def test_an_adapter_that_vllm_does_not_serve_is_refused(server, changes: Any, word: str):
    policy = tiny_model() if changes is None else adapted("gpt2", **changes)
    with pytest.raises(ConfigError, match=rf"^rollout\.enable_lora=true: [^\n]*{word}[^\n]*$"):
        sample(engine(server[0], enable_lora=True), policy)


def test_a_server_that_stays_down_is_a_one_line_error(server):
    url, handler = server
    model = tiny_model()
    vllm = engine(url, server_timeout=0.05)
    sample(vllm, model)
    handler.down = True
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*cannot be reached[^\n]*vllm serve[^\n]*$"):
        sample(vllm, model)
    handler.down = False
    assert len(sample(vllm, model)) == 1


def test_server_without_processed_logprobs_is_named(calls, server, monkeypatch):
    score = calls.score
    monkeypatch.setattr(calls, "score", lambda prompt, ids, temperature, adapter: score(prompt, ids, 1.0, adapter))
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*--logprobs-mode processed_logprobs[^\n]*$"):
        sample(engine(server[0], temperature=0.5), tiny_model())


def test_an_http_error_is_a_one_line_error(server):
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*/v1/completions was refused \(400\)[^\n]*$"):
        sample(engine(server[0]), tiny_model(), seeds=[666])


def test_an_unreachable_server_is_a_one_line_error():
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*cannot be reached[^\n]*vllm serve[^\n]*$"):
        sample(engine("http://127.0.0.1:9"), tiny_model())


def test_a_folder_that_cannot_be_written_is_a_one_line_error(server, tmp_path):
    vllm = engine(server[0], transfer_dir=str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"^rollout\.transfer_dir=[^\n]*cannot be written[^\n]*$"):
        sample(vllm, tiny_model())


@pytest.fixture
def nccl(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake of vLLM's weight transfer: reads the metadata of the source, then its tensors."""

    class Factory:
        @staticmethod
        def trainer_init(**given: Any) -> Any:
            init_info, client, source = (
                checked("trainer_init", given)[name] for name in ("init_info", "client", "source")
            )
            calls.init = {**checked("NCCLTrainerInitInfo", vars(init_info)), "client": client}

            def send_weights() -> None:
                described = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
                assert described == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]
                calls.receive(dict(source))

            return SimpleNamespace(send_weights=send_weights)

    package, nccl, network = (ModuleType(name) for name in ("weight_transfer", "nccl_engine", "network_utils"))
    vars(package).update(
        WeightTransferTrainerFactory=Factory,
        HTTPVLLMWeightSyncClient=lambda url, timeout: (url, timeout),
        ParamMeta=lambda name, dtype, shape: SimpleNamespace(name=name, dtype=dtype, shape=shape),
    )
    vars(nccl).update(NCCLTrainerInitInfo=SimpleNamespace)
    vars(network).update(get_ip=lambda: "10.0.0.1", get_open_port=lambda: 4321)
    module: Any = ModuleType("vllm")
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.distributed", ModuleType("distributed"))
    monkeypatch.setitem(sys.modules, "vllm.utils", ModuleType("utils"))
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer", package)
    monkeypatch.setitem(sys.modules, "vllm.distributed.weight_transfer.nccl_engine", nccl)
    monkeypatch.setitem(sys.modules, "vllm.utils.network_utils", network)


def test_nccl_transfer(calls, server, nccl):
    model = tiny_model()
    vllm = engine(server[0], weight_transfer="nccl")
    for _ in range(2):
        sample(vllm, model)
        change(model)
    assert calls.events == [*LOADED, "/v1/completions"] * 2
    # Two workers of the server, and this process.
    assert calls.init == {
        "master_address": "10.0.0.1",
        "master_port": 4321,
        "world_size": 3,
        "rank": 0,
        "client": (server[0].rstrip("/"), 7.0),
    }


def test_a_failed_nccl_transfer_is_a_one_line_error(server, nccl, monkeypatch):
    def fail(**given: Any) -> Any:
        raise RuntimeError("NCCL error: unhandled system error\nmore")

    factory = sys.modules["vllm.distributed.weight_transfer"].WeightTransferTrainerFactory
    monkeypatch.setattr(factory, "trainer_init", fail)
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*NCCL failed \(NCCL error[^\n]*weight_transfer=disk$"):
        sample(engine(server[0], weight_transfer="nccl"), tiny_model())


def test_used_routes_are_those_of_the_real_server():
    used = {"POST /collective_rpc", "POST /reset_prefix_cache", "POST /update_weight_version", "GET /weight_info"}
    assert used <= set(SIGNATURES["routes"])
