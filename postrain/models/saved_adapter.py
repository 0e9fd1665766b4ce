"""Reads a saved PEFT adapter, and checks that it belongs to its base model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from postrain.errors import ConfigError, as_config_error
from postrain.models.directory import fingerprint, read_json

REFERENCE = "reference"
"""The name of the frozen copy of an adapter that gives the initial policy."""
WEIGHTS = "adapter_model.safetensors"
BASE_FILE = "base_model.json"
"""The fingerprint of the base model, beside the adapter."""


def saved_config(directory: Path, *, head: str | None = None) -> Any:
    """The PEFT config of a saved adapter, for training; without `head`, for any class of model."""
    from peft import PeftConfig  # noqa: PLC0415 - takes seconds

    with as_config_error(f"the adapter in {directory} cannot be read"):
        config: Any = PeftConfig.from_pretrained(str(directory))
    if config.peft_type != "LORA":
        raise ConfigError(f"the adapter in {directory} is of type {config.peft_type}; expected LORA")
    config.task_type = {"causal": "CAUSAL_LM", "scalar": "SEQ_CLS", None: None}[head]
    config.inference_mode = False
    # PEFT takes it from the model.
    config.base_model_name_or_path = None
    # The weights are in the file.
    config.init_lora_weights = True
    return config


def load_weights(policy: Any, directory: Path) -> None:
    """Loads the weights of a saved adapter. Raises ConfigError if they are those of another base model."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict  # noqa: PLC0415 - takes seconds

    with as_config_error(f"the adapter in {directory} cannot be read"):
        weights = load_file(directory / WEIGHTS)
    expected = get_peft_model_state_dict(policy, save_embedding_layers=False)
    _remove_base(policy, weights, expected, directory)
    wrong = [name for name, values in expected.items() if name not in weights or weights[name].shape != values.shape]
    if wrong or len(weights) != len(expected):
        one = wrong[0] if wrong else next(name for name in weights if name not in expected)
        raise ConfigError(
            f"the adapter in {directory} was trained on another base model: {one} does not fit ({len(wrong)} of "
            f"{len(expected)} tensors differ); correct base_model_name_or_path in its adapter_config.json"
        )
    set_peft_model_state_dict(policy, weights)


def _remove_base(policy: Any, weights: dict[str, Tensor], own: Collection[str], directory: Path) -> None:
    """Removes weights of the base model that were saved with those of the adapter, `own`: PEFT may save embeddings.
    Raises ConfigError if they differ from the base model's."""
    base = policy.state_dict()
    for name in [name for name in weights if name in base and name not in own]:
        saved = weights.pop(name)
        if saved.shape != base[name].shape or not torch.equal(saved.to(base[name]), base[name]):
            raise ConfigError(
                f"the adapter in {directory} includes weights of a base model that was changed ({name}); merge it into "
                "that model with PEFT's merge_and_unload, and give the merged model"
            )


def check_base(adapter: Path, base: Path) -> None:
    """Raises ConfigError if the base model changed after the adapter was trained."""
    if not (adapter / BASE_FILE).is_file():
        return
    recorded = read_json(adapter / BASE_FILE).get("fingerprint")
    if recorded != (found := fingerprint(base)):
        raise ConfigError(
            f"the adapter in {adapter} was trained on other weights than those now in {base} (fingerprint {recorded}, "
            f"now {found}); restore them, or delete {BASE_FILE} beside the adapter to use these"
        )


def base_file(model: nn.Module) -> dict[str, Any] | None:
    """The content of BASE_FILE: the fingerprint of the base model; None for a Hub name, whose commits do not change."""
    directory = Path(str(getattr(model, "name_or_path", "") or ""))
    if not directory.parts or not (directory / "config.json").is_file():
        return None
    return {"fingerprint": fingerprint(directory)}
