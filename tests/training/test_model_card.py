"""The base model that the card of a trained model names."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from postrain.models.sources import ModelSource
from postrain.training.finalize import base_model


def test_base_of_an_adapter_is_never_the_parent_of_its_weights(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nbase_model: org/parent\n---\n")
    weights: Any = SimpleNamespace(stand_in_for=None, adapters=(), directory=tmp_path)
    local, hub = ModelSource(path=str(tmp_path)), ModelSource(path="org/name")
    assert base_model(local, weights, adapted=False) == "org/parent"
    assert base_model(local, weights, adapted=True) is None
    assert base_model(hub, weights, adapted=True) == "org/name"
    # An adapter that is trained further has the base that its own card names.
    further: Any = SimpleNamespace(stand_in_for=None, adapters=(tmp_path,), directory=tmp_path / "base")
    assert base_model(local, further, adapted=True) == "org/parent"
