"""Records where a model in memory was loaded from, so that a run can name its source and resume from the files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from postrain.errors import ConfigError
from postrain.models.adapters import Adapter, NoAdapter
from postrain.models.disk_cache import disk_cached
from postrain.models.parts import unwrapped, weights_digest
from postrain.models.sources import ModelSource


@dataclass(frozen=True)
class Provenance:
    """The source, tokenizer and adapter of a loaded model."""

    source: ModelSource
    tokenizer: Any
    adapter: Adapter


# Provenance and the number of in-place parameter changes when the model was loaded.
_loaded: WeakKeyDictionary[nn.Module, tuple[Provenance, int]] = WeakKeyDictionary()


def record_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Records the provenance of a model for its lifetime."""
    _loaded[model] = provenance, _changes(model)


def provenance_of(model: nn.Module) -> Provenance | None:
    """The recorded provenance of a model, or None."""
    return _loaded.get(model, (None, 0))[0]


def unchanged(model: nn.Module) -> bool:
    """Whether a model still has its loaded weights."""
    return model in _loaded and _loaded[model][1] == _changes(model)


def save_to_cache(model: nn.Module, tokenizer: Any) -> Provenance:
    """Writes a changed model to the cache. Raises ConfigError for a model with an adapter."""
    if hasattr(model, "disable_adapter"):
        raise ConfigError(
            "model: its adapter was not created by load_model, so its base model is not known; use "
            "pt.load_model(NAME, adapter=...) or a Lightning Trainer"
        )

    def write(directory: Path) -> None:
        unwrapped(model).save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    return Provenance(
        ModelSource(path=str(disk_cached(f"model-{weights_digest(model)}", write))), tokenizer, NoAdapter()
    )


def _changes(model: nn.Module) -> int:
    return sum(parameter._version for parameter in model.parameters())
