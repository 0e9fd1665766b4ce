"""Transfer of a LoRA adapter to vLLM servers, a few megabytes instead of all merged weights.

The base weights are sent once. Each version of the adapter has a name of its own, so that vLLM's prefix cache does not
mix them. Not supported: DoRA, modules_to_save and trained embeddings, which vLLM does not serve.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.hardware.sharding import full_tensor, stored_parameters
from postrain.models.reference import set_in_layers
from postrain.models.saved_adapter import WEIGHTS
from postrain.rollout.vllm_http import Connections
from postrain.rollout.vllm_transfer import Transfer, one_line_disk_error


class AdapterTransfer:
    """See `Transfer`. `whole` sends the base weights."""

    def __init__(self, servers: Connections, whole: Transfer, folder: Path | None) -> None:
        self.servers, self.whole, self.folder = servers, whole, folder
        self.name: str | None = None
        self.directory: tempfile.TemporaryDirectory[str] | None = None
        """Of the current adapter: vLLM may read it again."""

    def send(self, model: nn.Module, version: str, *, fresh: bool) -> str | None:
        """See `Transfer.send`."""
        if fresh:
            self.name = None
            # PEFT's disable_adapter also changes requires_grad, which it restores for the wrong parameters if they are
            # sharded.
            with set_in_layers(model, "_disable_adapters", True):
                self.whole.send(model, version, fresh=True)
        if any(getattr(module, "_disable_adapters", False) for module in model.modules()):
            return None
        old, self.name = self.name, f"postrain-{version}"
        stored = stored_parameters(model)
        weights = {
            name: full_tensor(stored[weight])
            for name, weight in model.named_parameters(remove_duplicate=False)
            if "lora_" in name
        }
        if collectives.rank() == 0:
            self._replace(model, weights, old)
        return self.name

    def _replace(self, model: nn.Module, weights: Mapping[str, Tensor], old: str | None) -> None:
        with one_line_disk_error(self.folder):
            directory = tempfile.TemporaryDirectory(prefix="postrain-adapter-", dir=self.folder)
            save_adapter(model, weights, Path(directory.name))
        self.servers.request("/v1/load_lora_adapter", {"lora_name": self.name, "lora_path": directory.name})
        if old:
            with suppress(ConfigError):
                self.servers.request("/v1/unload_lora_adapter", {"lora_name": old})
        if self.directory:
            self.directory.cleanup()
        self.directory = directory


def save_adapter(policy: Any, parameters: Mapping[str, Tensor], directory: Path) -> None:
    """Writes the active adapter of a PEFT model, whose whole `parameters` are given by name, in PEFT's format."""
    from peft import get_peft_model_state_dict  # noqa: PLC0415 - takes seconds

    weights = get_peft_model_state_dict(policy, dict(parameters), adapter_name=policy.active_adapter)
    save_file({name: values.cpu().contiguous() for name, values in weights.items()}, directory / WEIGHTS)
    policy.peft_config[policy.active_adapter].save_pretrained(str(directory))


def check_adapter(policy: Any) -> None:
    """Raises ConfigError for a model without an adapter, or with one that vLLM does not serve."""
    config = getattr(policy, "peft_config", {}).get("default")
    if config is None:
        raise ConfigError("rollout.enable_lora=true: this run has no adapter; give adapter=lora, or false")
    for name in ("use_dora", "modules_to_save", "trainable_token_indices"):
        if getattr(config, name, None):
            raise ConfigError(
                f"rollout.enable_lora=true: vLLM serves no adapter with {name}; false sends the merged weights"
            )
