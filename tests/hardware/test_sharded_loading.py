"""Sharded models that are read slice by slice equal those that are read whole."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from postrain.errors import ConfigError
from postrain.hardware.sharding import full_state_dict, shard
from postrain.models.loading import load
from postrain.models.sharded_loading import load_sharded, weight_map
from tests.hardware.test_sharding import gradients, is_sharded
from tests.tiny import tiny_model
from tests.training_runs import train_config


def saved(directory: Path, architecture: str, **options: Any) -> Any:
    tiny_model(architecture).save_pretrained(directory, **options)
    return SimpleNamespace(
        directory=directory, adapters=(), resize=False, from_scratch=False, name="tiny", loads_as="", head="causal"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "options"),
    [("gpt2", {}), ("llama", {"max_shard_size": "10KB"}), ("qwen3", {}), ("gemma3", {})],
    ids=["tied-conv1d", "several-files", "tied", "local-rotary"],
)
def test_weights_buffers_and_gradients_equal_those_of_a_whole_model(architecture, options, dtype, mesh, tmp_path):
    source = saved(tmp_path, architecture, **options)
    whole = load(source, "causal", dtype=dtype).model
    model = load_sharded(source, "causal", dtype=dtype, shard=partial(shard, mesh=mesh))
    assert model is not None
    assert is_sharded(model) == {True}
    assert not model.training
    for mine, theirs in (
        (full_state_dict(model), whole.state_dict()),
        (dict(model.named_buffers()), dict(whole.named_buffers())),
        (gradients(model), gradients(whole)),
    ):
        assert mine.keys() == theirs.keys()
        assert all(each.dtype == theirs[name].dtype and each.equal(theirs[name]) for name, each in mine.items())


def test_new_scalar_head_equals_that_of_a_whole_model(mesh):
    source = train_config(["method=reward"]).resolved
    whole = load(source, "scalar", dtype=torch.bfloat16).model
    model = load_sharded(source, "scalar", dtype=torch.bfloat16, shard=partial(shard, mesh=mesh))
    assert model is not None
    assert full_state_dict(model)["score.weight"].equal(whole.state_dict()["score.weight"])


def test_single_file_is_read_before_an_index_and_files_elsewhere_are_refused(tmp_path):
    """As transformers reads them."""
    saved(tmp_path, "gpt2")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../model.safetensors"}}')
    assert {*weight_map(tmp_path).values()} == {tmp_path / "model.safetensors"}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"names \.\./model\.safetensors, a file elsewhere"):
        weight_map(tmp_path)


def without(name: str, weights: dict[str, torch.Tensor]) -> None:
    del weights[name]


def widened(name: str, weights: dict[str, torch.Tensor]) -> None:
    weights[name] = torch.zeros(3, 4)


@pytest.mark.parametrize("change", [without, widened])
def test_files_that_lack_a_weight_are_left_to_the_loader_of_whole_models(change, mesh, tmp_path):
    source = saved(tmp_path, "llama")
    weights = load_file(tmp_path / "model.safetensors")
    change("model.layers.1.mlp.up_proj.weight", weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_sharded(source, "causal", dtype=torch.float32, shard=partial(shard, mesh=mesh)) is None


@pytest.mark.parametrize("change", [{"adapters": (Path("lora"),)}, {"resize": True}, {"from_scratch": True}])
def test_changed_models_are_left_to_the_loader_of_whole_models(change, mesh, tmp_path):
    source = saved(tmp_path, "llama")
    vars(source).update(change)
    assert load_sharded(source, "causal", dtype=torch.float32, shard=partial(shard, mesh=mesh)) is None
