"""Writes tests/rollout/vllm_signatures.json: the parameters of the part of vLLM that postrain uses, read from the
installed package. tests/rollout/fake_vllm.py rejects arguments that are not among them.

    python tests/vllm_cpu/record.py            write it
    python tests/vllm_cpu/record.py --check    compare it with the installed package
"""

import dataclasses
import importlib
import inspect
import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

RECORD = Path(__file__).parents[1] / "rollout" / "vllm_signatures.json"
FUNCTIONS = {
    "LLM.collective_rpc": "vllm:LLM.collective_rpc",
    "LLM.generate": "vllm:LLM.generate",
    "LLM.reset_prefix_cache": "vllm:LLM.reset_prefix_cache",
    "LLM.sleep": "vllm:LLM.sleep",
    "LLM.wake_up": "vllm:LLM.wake_up",
    "SamplingParams": "vllm:SamplingParams",
    "reload_weights": "vllm.v1.worker.gpu_model_runner:GPUModelRunner.reload_weights",
    "trainer_init": "vllm.distributed.weight_transfer:WeightTransferTrainerFactory.trainer_init",
    "HTTPVLLMWeightSyncClient": "vllm.distributed.weight_transfer:HTTPVLLMWeightSyncClient",
    "ParamMeta": "vllm.distributed.weight_transfer:ParamMeta",
    "NCCLTrainerInitInfo": "vllm.distributed.weight_transfer.nccl_engine:NCCLTrainerInitInfo",
    "get_ip": "vllm.utils.network_utils:get_ip",
    "get_open_port": "vllm.utils.network_utils:get_open_port",
}
ROUTERS = (
    "vllm.entrypoints.serve.dev.rpc.api_router",
    "vllm.entrypoints.serve.dev.cache.api_router",
    "vllm.entrypoints.rl.online.api_router",
    "vllm.entrypoints.serve.dev.rlhf.api_router",
)
"""Those of the development mode; their modules differ between versions."""
REQUESTS = (
    "vllm.entrypoints.openai.completion.protocol:CompletionRequest",
    "vllm.entrypoints.serve.lora.protocol:LoadLoRAAdapterRequest",
)


def named(path: str) -> Any:
    """The object at `module:attribute.attribute`."""
    module, _, attributes = path.partition(":")
    found: Any = importlib.import_module(module)
    for name in attributes.split("."):
        found = getattr(found, name)
    return found


def parameters(function: Any) -> list[str]:
    """The names of the parameters, without self and without variable ones."""
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    found = inspect.signature(function).parameters.values()
    return sorted(each.name for each in found if each.kind not in variable and each.name not in ("self", "cls"))


def routes() -> list[str]:
    """The methods and paths of the routers."""
    found: list[str] = []
    for name in ROUTERS:
        with suppress(ModuleNotFoundError):
            for route in importlib.import_module(name).router.routes:
                found += [f"{method} {route.path}" for method in route.methods]
    return sorted(found)


def signatures() -> dict[str, list[str]]:
    """The recorded parameters and routes of the installed vLLM."""
    found = {name: parameters(named(path)) for name, path in FUNCTIONS.items()}
    arguments = [each.name for each in dataclasses.fields(named("vllm.engine.arg_utils:EngineArgs"))]
    # LLM passes its other arguments on to EngineArgs.
    found["LLM"] = sorted({*parameters(named("vllm:LLM")), *arguments})
    found["TokensPrompt"] = sorted(named("vllm.inputs:TokensPrompt").__annotations__)
    for path in REQUESTS:
        found[path.rpartition(":")[2]] = sorted(named(path).model_fields)
    found["routes"] = routes()
    return found


if __name__ == "__main__":
    found = {"version": importlib.import_module("vllm").__version__, **signatures()}
    if "--check" not in sys.argv:
        RECORD.write_text(json.dumps(found, indent=1) + "\n")
    elif changed := [name for name, value in json.loads(RECORD.read_text()).items() if found[name] != value]:
        sys.exit(f"{RECORD.name}: vLLM {found['version']} has other {', '.join(changed)}; run {sys.argv[0]}")
    print(f"{RECORD.name} describes vLLM {found['version']}")
