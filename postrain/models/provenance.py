"""Where a model in memory comes from, so that a run of it can say so and can be resumed from its files."""

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
    """What a model was loaded from."""

    source: ModelSource
    tokenizer: Any
    adapter: Adapter


# Each with the number of changes in place that its parameters had seen when it was loaded.
_loaded: WeakKeyDictionary[nn.Module, tuple[Provenance, int]] = WeakKeyDictionary()


def record_provenance(model: nn.Module, provenance: Provenance) -> None:
    """Keeps where a model comes from as long as the model lives."""
    _loaded[model] = provenance, _changes(model)


def provenance_of(model: nn.Module) -> Provenance | None:
    """Where a model comes from; None where nobody has said so."""
    return _loaded.get(model, (None, 0))[0]


def unchanged(model: nn.Module) -> bool:
    """Whether a model still has the weights it was loaded with."""
    return model in _loaded and _loaded[model][1] == _changes(model)


def save_to_cache(model: nn.Module, tokenizer: Any) -> Provenance:
    """Writes a model that no file equals to the cache. Raises ConfigError for one with an adapter."""
    if hasattr(model, "disable_adapter"):
        raise ConfigError(
            "model: its adapter is not as load_model made it, so that its base cannot be found again; use "
            "pt.load_model(NAME, adapter=...), or a Lightning Trainer"
        )

    def write(directory: Path) -> None:
        unwrapped(model).save_pretrained(directory)
        tokenizer.save_pretrained(directory)

    return Provenance(
        ModelSource(path=str(disk_cached(f"model-{weights_digest(model)}", write))), tokenizer, NoAdapter()
    )


def _changes(model: nn.Module) -> int:
    return sum(parameter._version for parameter in model.parameters())
