"""A fake vLLM: a module with a deterministic LLM, and an HTTP server on loopback, with the real package's signatures.

Completions are fixed. Rows with `ignore_eos`, which only the check of transferred weights sends, are scored with the
transferred weights.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.tiny import tiny_model

END = 0
SIGNATURES: dict[str, list[str]] = json.loads((Path(__file__).parent / "vllm_signatures.json").read_text())


def checked(name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments, which the real function has to take."""
    assert set(arguments) <= set(SIGNATURES[name]), f"{name} takes no {set(arguments) - set(SIGNATURES[name])}"
    return arguments


@dataclass
class Calls:
    """Arguments and events recorded by the fake vLLM, in order."""

    init: Mapping[str, Any] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    prompts: list[list[int]] = field(default_factory=list)
    settings: list[dict[str, Any]] = field(default_factory=list)
    adapters: dict[str, str] = field(default_factory=dict)
    """Folders of the loaded adapters by name."""
    version: str = "default"
    """The server's weight version."""
    lost: tuple[str, ...] = ()
    """Weights that a transfer leaves as they were."""
    teacher: Any = None
    """The model of `prompt_logprobs`."""
    rank: str | None = None
    """The environment variable RANK when vLLM started."""
    resets: bool = True
    """Whether the prefix cache can be reset."""

    def receive(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Records transferred weights."""
        self.events.append("weights")
        self.weights.update({name: values.clone() for name, values in weights.items() if name not in self.lost})

    def complete(
        self, prompt: list[int], settings: Mapping[str, Any], adapter: str | None = None
    ) -> tuple[list[int], list[float], str]:
        """Tokens, log-probabilities and finish reason: the prompt's tokens and the end token, up to max_tokens."""
        checked("SamplingParams", settings)
        if settings.get("ignore_eos"):
            ids = [(prompt[-1] + i) % 61 for i in range(settings["max_tokens"])]
            return ids, self.score(prompt, ids, settings["temperature"], adapter), "length"
        self.prompts.append(prompt)
        self.settings.append(dict(settings))
        ids = [*prompt, END][: settings["max_tokens"]]
        return ids, [-0.5 * (i + 1) for i in range(len(ids))], "stop" if ids[-1] == END else "length"

    @torch.no_grad()
    def prompt_logprobs(self, prompt: list[int], count: int) -> list[dict[str, Any] | None]:
        """The most likely tokens at each token of the prompt under `teacher`, and that token."""
        logps = self.teacher(torch.tensor([prompt])).logits[0, :-1].log_softmax(-1)
        kept = [{*row.topk(count).indices.tolist(), token} for row, token in zip(logps, prompt[1:], strict=True)]
        tables = [{str(i): {"logprob": float(row[i])} for i in ids} for row, ids in zip(logps, kept, strict=True)]
        return [None, *tables]

    @torch.no_grad()
    def score(self, prompt: list[int], ids: list[int], temperature: float, adapter: str | None) -> list[float]:
        """Log-probabilities under the transferred weights, with the adapter in a folder."""
        model = tiny_model(seed=1).eval()
        model.load_state_dict({name: values.float() for name, values in self.weights.items()}, strict=False)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter).eval()
        logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1] / temperature
        return torch.log_softmax(logits, -1)[range(len(ids)), ids].tolist()


def fake_vllm(calls: Calls) -> ModuleType:
    """A module with the part of vLLM that a colocated engine uses."""

    class LLM:
        def __init__(self, **settings: Any) -> None:
            calls.init, calls.rank = checked("LLM", settings), os.environ.get("RANK")

        def collective_rpc(self, method: str, **given: Any) -> None:
            checked("LLM.collective_rpc", given)
            calls.receive(dict(checked(method, given["kwargs"])["weights_iterator"]))

        def reset_prefix_cache(self) -> bool:
            calls.events.append("reset")
            return calls.resets

        def sleep(self, **given: Any) -> None:
            calls.events.append(f"sleep {checked('LLM.sleep', given)['level']}")

        def wake_up(self) -> None:
            calls.events.append("wake")

        def generate(self, prompts: list[Any], settings: list[Any], **given: Any) -> list[Any]:
            checked("LLM.generate", given)
            found = [
                calls.complete(checked("TokensPrompt", prompt)["prompt_token_ids"], vars(values))
                for prompt, values in zip(prompts, settings, strict=True)
            ]
            calls.events.append("check" if vars(settings[0]).get("ignore_eos") else "generate")
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


class Handler(BaseHTTPRequestHandler):
    """vLLM's HTTP API; requests are recorded in `calls`."""

    calls: Calls
    down = False
    """Whether connections are closed without an answer."""
    restart_at: str | None = None
    """Path of the next request at which the server restarts, with its base weights: that request gets no answer."""

    def do_GET(self) -> None:
        answers = {
            "/health": None,
            "/v1/models": {"data": [{"id": "served"}]},
            "/get_world_size": {"world_size": 2},
            "/weight_info": {"weight_version": self.calls.version},
        }
        if not self.is_down():
            self.respond(answers[self.path])

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.is_down():
            return None
        if self.path == "/tokenize":
            return self.respond({"tokens": [ord(letter) for letter in request["prompt"]]})
        if self.path == "/v1/completions":
            return self.complete(checked("CompletionRequest", request))
        if self.path.endswith("_lora_adapter"):
            return self.adapter(request)
        assert f"POST {self.path}" in SIGNATURES["routes"]
        if self.path == "/collective_rpc":
            path = checked(request["method"], request["kwargs"])["weights_path"]
            for file in sorted(Path(path).glob("*.safetensors")):
                self.calls.receive(load_file(file))
            return self.respond({"results": [None]})
        self.calls.events.append(self.path)
        if self.path == "/update_weight_version":
            self.calls.version = request["new_version"]
        return self.respond({"success": self.calls.resets})

    def adapter(self, request: Mapping[str, Any]) -> None:
        checked("LoadLoRAAdapterRequest", request)
        name = request["lora_name"]
        if self.path == "/v1/load_lora_adapter":
            self.calls.adapters[name] = request["lora_path"]
        else:
            del self.calls.adapters[name]
        self.calls.events.append(self.path)
        return self.respond(f"Success: LoRA adapter '{name}' added.", kind="text/plain")

    def complete(self, request: Mapping[str, Any]) -> None:
        if count := request.get("prompt_logprobs"):
            tables = self.calls.prompt_logprobs(request["prompt"], count)
            return self.respond({"choices": [{"prompt_logprobs": tables}]})
        if request["seed"] == 666:
            return self.respond({"message": "too\nlong"}, 400)
        probe = "check" if request.get("ignore_eos") else "/v1/completions"
        self.calls.events.append(probe)
        settings = {name: value for name, value in request.items() if name not in OWN}
        adapter = self.calls.adapters.get(request["model"])
        ids, logps, reason = self.calls.complete(request["prompt"], settings, adapter)
        if probe != "check":
            self.calls.settings[-1] = dict(request)
        choice = {"token_ids": ids, "logprobs": {"token_logprobs": logps}, "finish_reason": reason}
        return self.respond({"choices": [choice]})

    def is_down(self) -> bool:
        if type(self).restart_at == self.path:
            type(self).restart_at = None
            self.calls.version = "default"
            self.calls.weights.clear()
            self.calls.adapters.clear()
            return True
        return self.down

    def respond(self, body: Any, status: int = 200, kind: str = "application/json") -> None:
        text = b"" if body is None else body.encode() if kind == "text/plain" else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: Any) -> None:
        """Writes no log."""


OWN = {"model", "prompt", "return_token_ids"}
"""Fields of a request that are not sampling parameters."""


@contextmanager
def fake_server(calls: Calls) -> Iterator[tuple[str, type[Handler]]]:
    """The address of a running server, and its handler."""
    handler = type("Handler", (Handler,), {"calls": calls})
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}/", handler
    listening.shutdown()
    listening.server_close()
