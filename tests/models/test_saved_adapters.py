"""Adapters that do not start as the identity: further training of a saved one, PiSSA, OLoRA; and adapters of another
base model."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from postrain.errors import ConfigError
from postrain.methods.optim import make_optimizer, set_learning_rate
from postrain.models.adapters import Adapter, Continue
from postrain.models.export import export
from postrain.models.loading import load_causal
from postrain.models.reference import Reference
from postrain.models.saved_adapter import WEIGHTS
from postrain.models.weight_sync import fingerprint, merged_weights
from tests.models.conftest import CONFIGS, byte_tokenizer, source, tiny_model
from tests.models.test_adapters import logits, lora, moved

FP32 = torch.float32


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def trained(adapter: Adapter, path: Path) -> Any:
    """The policy of a model in `path` with the adapter, moved as by training."""
    return moved(started(adapter, path))


def started(adapter: Adapter, path: Path) -> Any:
    base, saved = adapter.split(source(path).resolve())
    return adapter.wrap(load_causal(base, dtype=FP32), head="causal", saved=saved)


@pytest.fixture
def first(saved: Callable[..., Path], tmp_path: Path) -> Path:
    """The export of a trained LoRA."""
    export(trained(lora(modules_to_save=("lm_head",)), saved("llama")), byte_tokenizer(), tmp_path / "first", card="")
    return tmp_path / "first"


def test_continued_adapter_starts_and_stays_on_the_base_of_the_saved_one(first: Path, tmp_path: Path) -> None:
    start = logits(AutoPeftModelForCausalLM.from_pretrained(first))
    policy = started(Continue(), first)
    close(logits(policy), start)
    names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    assert names
    assert all("default" in name for name in names)
    moved(policy)
    assert (logits(policy) - start).abs().max() > 0.01
    export(policy, byte_tokenizer(), tmp_path / "second", card="")
    configs = [json.loads((path / "adapter_config.json").read_text()) for path in (first, tmp_path / "second")]
    assert configs[0]["base_model_name_or_path"] == configs[1]["base_model_name_or_path"]
    assert configs[1]["r"] == configs[0]["r"]
    close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "second")), logits(policy))
    assert sorted(path.name for path in (tmp_path / "second").iterdir() if path.is_dir()) == []


@pytest.mark.parametrize("init", ["continue", "pissa", "olora"])
def test_reference_is_the_initial_policy_after_training(saved: Callable[..., Path], first: Path, init: Any) -> None:
    adapter, path = (Continue(), first) if init == "continue" else (lora(init_lora_weights=init), saved("llama"))
    policy = started(adapter, path)
    start, before = logits(policy), fingerprint(policy)
    close(start, logits(load_causal(source(path).resolve(), dtype=FP32)))
    reference = Reference.for_policy(policy)
    assert "initial adapter" in reference.description
    moved(policy)
    after = logits(policy)
    with reference.scoring() as initial:
        assert torch.equal(logits(initial), start)
        assert fingerprint(policy)[0] != before[0]
    assert torch.equal(logits(policy), after)


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora", "rslora": True},
        {"init_lora_weights": "gaussian"},
        {"modules_to_save": ("lm_head",)},
        {"modules_to_save": ("lm_head",), "dora": True},
    ],
)
def test_export_loads_in_plain_peft_on_the_unchanged_base(
    saved: Callable[..., Path], tmp_path: Path, changes: dict[str, Any]
) -> None:
    policy = trained(lora(**changes), saved("llama"))
    expected = logits(policy)
    export(policy, byte_tokenizer(), tmp_path / "out", card="")
    close(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out")), expected)
    close(logits(load_causal(source(tmp_path / "out").resolve(), dtype=FP32)), expected)
    assert torch.equal(logits(policy), expected)


@pytest.mark.parametrize("module", ["embed_tokens", "lm_head"])
def test_saved_modules_of_tied_embeddings_stay_tied(saved: Callable[..., Path], tmp_path: Path, module: str) -> None:
    policy = trained(lora(modules_to_save=(module,)), saved("qwen2"))
    export(policy, byte_tokenizer(), tmp_path / "out", card="")
    merged: Any = load_causal(source(tmp_path / "out").resolve(), dtype=FP32)
    close(logits(merged), logits(policy))
    assert torch.equal(merged.lm_head.weight, merged.model.embed_tokens.weight)
    with pytest.raises(ConfigError, match=r"transformer.wte of a GPT2LMHeadModel, which is tied.*new_tokens"):
        lora(modules_to_save=("wte",)).wrap(tiny_model("gpt2"), head="causal")


def test_saved_modules_are_sent_to_other_engines(saved: Callable[..., Path]) -> None:
    policy = trained(lora(modules_to_save=("lm_head",)), saved("llama"))
    copy = tiny_model("llama")
    report = copy.load_state_dict(dict(merged_weights(policy)), strict=False)
    assert not report.missing_keys
    assert not report.unexpected_keys
    close(logits(copy), logits(policy))


def test_unknown_module_to_save_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM has no module 'head'; it has .*lm_head"):
        lora(modules_to_save=("head",)).wrap(tiny_model("llama"), head="causal")


def test_model_without_an_adapter_cannot_be_continued(saved: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"adapter=continue: tiny-gpt2 has no adapter.*adapter=lora"):
        Continue().split(source(saved()).resolve())


@pytest.mark.parametrize("adapter", [Continue(), lora()])
def test_adapter_of_another_base_model_is_refused_in_one_line(
    saved: Callable[..., Path], first: Path, adapter: Adapter
) -> None:
    config = json.loads((first / "adapter_config.json").read_text())
    (first / "base_model.json").unlink()
    # A base with wider matrices under the same names, and one of another architecture.
    config_of_wide: Any = deepcopy(CONFIGS["llama"])
    config_of_wide.intermediate_size = 64
    wide = saved("qwen3")
    LlamaForCausalLM(config_of_wide).save_pretrained(wide)
    for base in (saved("gpt2"), wide):
        config["base_model_name_or_path"] = str(base)
        (first / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match="trained on another base model") as error:
            started(adapter, first)
        assert "\n" not in str(error.value)


def test_embeddings_saved_with_an_adapter_must_be_those_of_its_base(saved: Callable[..., Path], tmp_path: Path) -> None:
    policy = trained(lora(), saved("llama"))
    policy.save_pretrained(tmp_path, selected_adapters=["default"], save_embedding_layers=True)
    byte_tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / WEIGHTS)
    embeddings = "base_model.model.model.embed_tokens.weight"
    assert embeddings in weights
    close(logits(started(Continue(), tmp_path)), logits(policy))
    save_file({**weights, embeddings: weights[embeddings] + 1}, tmp_path / WEIGHTS)
    with pytest.raises(ConfigError, match=r"base model that was changed \(.*embed_tokens.weight\); merge it"):
        started(Continue(), tmp_path)


def test_adapter_whose_base_changed_since_is_refused(saved: Callable[..., Path], first: Path) -> None:
    tiny_model("llama", seed=1).save_pretrained(saved("llama"))
    with pytest.raises(ConfigError, match=r"other weights than those now in .*delete base_model.json"):
        source(first).resolve()


def test_lora_plus_gives_b_matrices_a_multiple_of_the_learning_rate() -> None:
    policy = lora().wrap(tiny_model("llama"), head="causal")
    optimizer = make_optimizer(policy, torch.optim.AdamW, lr=1e-3, weight_decay=0.0, lr_ratio=16.0)
    set_learning_rate(optimizer, 5e-4)
    rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in policy.named_parameters():
        if parameter.requires_grad:
            assert rates[parameter] == pytest.approx(8e-3 if "lora_B" in name else 5e-4)
