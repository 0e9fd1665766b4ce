"""Exports a trained policy as a Hugging Face directory that plain transformers or PEFT loads.

An adapter is saved as an adapter only if its base model can be found by name; otherwise it is merged into the weights.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from postrain.models.adapters import CHANGES_BASE
from postrain.models.disk_cache import write_directory
from postrain.models.parts import unwrapped
from postrain.models.quiet import quiet
from postrain.models.saved_adapter import BASE_FILE, REFERENCE, base_file


def export(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    *,
    card: str,
    end_ids: Sequence[int] = (),
    files: Mapping[str, str] | None = None,
) -> None:
    """Atomically writes weights or adapter, tokenizer with chat template, generation config and README.md (`card`).

    `end_ids`: tokens that end a completion besides the EOS token, such as the template's end of turn. `files`:
    contents of additional files by name.
    """

    def fill(fresh: Path) -> None:
        with quiet():
            _save_weights(model, fresh)
            tokenizer.save_pretrained(fresh)
            _save_generation_config(model, tokenizer, end_ids, fresh)
        for name, text in {"README.md": card, **(files or {})}.items():
            (fresh / name).write_text(text, encoding="utf-8")

    directory.parent.mkdir(parents=True, exist_ok=True)
    write_directory(directory, fill)


def _save_weights(model: Any, directory: Path) -> None:
    if hasattr(model, "peft_config") and not base_of_adapter(model):
        # On a copy: training may continue.
        model = copy.deepcopy(model).merge_and_unload()
    if hasattr(model, "peft_config"):
        _save_adapter(model, directory)
    else:
        model.save_pretrained(directory)


def _save_adapter(model: Any, directory: Path) -> None:
    """Saves the adapter relative to the base model as it is on disk, and the fingerprint of that model."""
    # "auto" would query the Hub for a resized vocabulary of the base model; ours is never resized.
    plain: dict[str, Any] = {"save_embedding_layers": False}
    if model.peft_config["default"].init_lora_weights in CHANGES_BASE:
        with tempfile.TemporaryDirectory() as scratch:
            model.save_pretrained(scratch, selected_adapters=[REFERENCE], **plain)
            initial = str(Path(scratch, REFERENCE))
            model.save_pretrained(
                directory, selected_adapters=["default"], path_initial_model_for_weight_conversion=initial, **plain
            )
        model.set_adapter("default")
    else:
        model.save_pretrained(directory, selected_adapters=["default"], **plain)
    if found := base_file(unwrapped(model)):
        (directory / BASE_FILE).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def base_of_adapter(model: Any) -> str | None:
    """The name of the base model of an adapter that `export` saves alone; None if it saves complete weights."""
    return (hasattr(model, "peft_config") and model.peft_config["default"].base_model_name_or_path) or None


def _save_generation_config(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int], directory: Path
) -> None:
    """Writes the generation config with the end tokens that the policy was trained with."""
    config = copy.deepcopy(getattr(unwrapped(model), "generation_config", None))
    if config is None:
        return
    known = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    ends = dict.fromkeys(token for token in (tokenizer.eos_token_id, *end_ids, *known) if token is not None)
    config.eos_token_id = list(ends)
    config.pad_token_id = tokenizer.pad_token_id
    config.save_pretrained(directory)
