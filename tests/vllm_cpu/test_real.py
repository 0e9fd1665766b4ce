"""rollout=vllm with the real vLLM on a CPU, the bundled model, and weights that change between rollouts.

Not run without the package vllm-cpu; tests/vllm_cpu/run.sh makes an environment with it.
"""

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.models.sources import ASSETS
from postrain.rollout.vllm import VLLMEngine
from postrain.rollout.vllm_http import Connection, ServerLost
from postrain.rollout.vllm_probe import own_logps
from postrain.types import Completion, Stop
from tests.tiny import tiny_model
from tests.training_runs import composed

if importlib.util.find_spec("vllm") is None:
    pytest.skip("the real vLLM was not run; tests/vllm_cpu/run.sh runs it", allow_module_level=True)

PROMPTS = [torch.tensor([5, 6, 7, 8]), torch.tensor([100, 200, 300]), torch.tensor([11]), torch.tensor([5, 6, 7, 8])]
SEEDS = [1, 2, 2**62, 4]
STARTING = 900.0
"""Seconds in which a server starts on a busy machine."""


class RealServer:
    """A server in a process group of its own."""

    def __init__(self, model: Path, log: Path, *options: str) -> None:
        self.model, self.options = model, options
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        self.start()
        Connection(self.url, 5.0).wait(ServerLost(f"no server; see {log}"), STARTING)

    def start(self) -> None:
        # Not `vllm serve`, which looks for a package named vllm.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        options = [
            *self.options,
            "--host",
            "127.0.0.1",
            "--port",
            str(self.port),
            "--dtype",
            "float32",
            "--enforce-eager",
        ]
        self.process = subprocess.Popen(
            [*command, *options, "--logprobs-mode", "processed_logprobs"],
            env={**os.environ, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
            stdout=self.log.open("a"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    running = RealServer(ASSETS / "nano", tmp_path_factory.mktemp("server") / "log.txt")
    yield running
    running.kill()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A random Llama, whose adapters vLLM serves, with the tokenizer of the bundled model."""
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        tie_word_embeddings=True,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    for file in (ASSETS / "nano").glob("tokenizer*"):
        shutil.copy(file, tmp_path / "llama")
    return tmp_path / "llama"


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(ASSETS / "nano", dtype=torch.float32)


def change(model: Any, seed: int) -> None:
    """Moves every weight by a tenth of the spread of its tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * parameter.std() * 0.1


def sample(engine: VLLMEngine, model: Any) -> list[Completion]:
    """Completions, whose log-probabilities are those of the policy."""
    found = engine.generate(model, PROMPTS, seeds=SEEDS, stop=Stop((0,), (), str))
    with torch.no_grad():
        own = own_logps(model, PROMPTS, found, engine.temperature)
    assert torch.allclose(own, torch.cat([each.logps for each in found]), atol=1e-4)
    return found


def engine_of(server: RealServer, **changes: Any) -> VLLMEngine:
    return VLLMEngine(mode="server", url=server.url, max_new_tokens=12, server_timeout=STARTING, **changes)


def test_server_follows_every_change_of_the_weights(server, model):
    engine = engine_of(server, temperature=0.7)
    for seed in range(3):
        again = [each.ids.tolist() for each in sample(engine, model)]
        assert again == [each.ids.tolist() for each in sample(engine, model)]
        change(model, seed)


def test_kept_weights_are_sampled_in_a_thread_while_the_policy_changes(server, model):
    engine = engine_of(server, overlap=1)
    before = [each.ids.tolist() for each in sample(engine, model)]
    kept = engine.keep_weights(model, PROMPTS)
    assert kept

    def turns() -> list[Completion]:
        kept.generate(model, PROMPTS, seeds=SEEDS[::-1], stop=Stop((0,), (), str))
        found = kept.generate(model, PROMPTS, seeds=SEEDS, stop=Stop((0,), (), str))
        kept.release()
        return found

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(turns)
        change(model, 9)
        after = [each.ids.tolist() for each in sample(engine, model)]
    assert [each.ids.tolist() for each in running.result()] == before
    assert after != before


def test_a_killed_server_gets_the_weights_when_it_is_back(server, model, capsys):
    change(model, 5)
    engine = engine_of(server)
    before = [each.ids.tolist() for each in sample(engine, model)]
    server.kill()
    server.start()
    assert [each.ids.tolist() for each in sample(engine, model)] == before
    assert "waiting up to" in capsys.readouterr().err


def test_server_of_another_model_is_refused(server):
    engine = engine_of(server)
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*$"):
        engine.generate(tiny_model(), [torch.tensor([5, 6])], seeds=[1], stop=Stop((0,), (), str))


def test_a_lora_adapter_is_served(llama, tmp_path):
    server = RealServer(llama, tmp_path / "log.txt", "--enable-lora", "--max-lora-rank", "8")
    try:
        config = composed(["method=sft", "adapter=lora"])["adapter"] | {"r": 4}
        base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
        change(base, 1)  # so that the base weights have to be sent too
        policy = instantiate(config).wrap(base, head="causal")
        engine = engine_of(server, enable_lora=True)
        for _ in range(3):
            sample(engine, policy)
            with torch.no_grad():
                for name, parameter in policy.named_parameters():
                    if "lora_B" in name:
                        parameter += 0.1 * torch.randn(parameter.shape)
        with policy.disable_adapter():
            sample(engine, policy)
    finally:
        server.kill()


def test_colocated_engine_follows_every_change_of_the_weights(model):
    engine = VLLMEngine(max_new_tokens=12)
    engine.reserve(64)
    for seed in range(3):
        sample(engine, model)
        change(model, seed)
