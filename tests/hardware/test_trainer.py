"""A config node of Lightning's Trainer: translated, or refused key by key with the key to use."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as lightning
import pytest
import torch
from omegaconf import OmegaConf

import postrain as pt
from postrain.config.check import check
from postrain.config.tree import complete, instantiate
from postrain.errors import ConfigError
from postrain.hardware.trainer import Hardware
from postrain.training.config import TrainConfig
from tests.training_runs import composed, records, small_run

TEMPLATE = {
    "default_root_dir": "${paths.output_dir}",
    "min_epochs": 1,
    "max_epochs": 10,
    "accelerator": "cpu",
    "devices": 1,
    "check_val_every_n_epoch": 1,
    "deterministic": False,
}
"""conf/trainer/default.yaml of lightning-hydra-template."""
UNSUPPORTED = dict.fromkeys(("min_epochs", "max_epochs"))


def node(target: str = "lightning.pytorch.Trainer", **options: Any) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(
        complete(OmegaConf.create({"trainer": {"_target_": target, **options}}), TrainConfig)
    )
    return plain["trainer"]


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    return composed(["method=sft"])


def errors(config: dict[str, Any], **options: Any) -> list[str]:
    """The error lines of a config with this trainer."""
    try:
        check({**config, "trainer": node(**options)}, TrainConfig)
    except ConfigError as error:
        return str(error).splitlines()
    return []


@pytest.mark.parametrize(
    ("options", "hardware"),
    [
        ({}, Hardware()),
        ({**TEMPLATE, **UNSUPPORTED}, Hardware()),
        ({"target": "lightning.pytorch.trainer.Trainer", "devices": "auto"}, Hardware()),
        ({"target": "lightning.Trainer", "accelerator": "auto", "devices": -1, "strategy": "auto"}, Hardware()),
        ({"devices": "2"}, Hardware(devices=2, strategy="ddp")),
        ({"num_nodes": 2}, Hardware(num_nodes=2, strategy="ddp")),
        ({"devices": 2, "strategy": "ddp_find_unused_parameters_true"}, Hardware(devices=2, strategy="ddp")),
        ({"accelerator": "cuda", "devices": 2, "strategy": "fsdp"},
         Hardware(accelerator="gpu", devices=2, strategy="fsdp")),
        ({"precision": 32}, Hardware()),
        ({"precision": "32-true"}, Hardware()),
        ({"precision": "bf16"}, Hardware(precision="bf16-mixed")),
        ({"precision": "bf16-true"}, Hardware(precision="bf16")),
        ({"profiler": "simple", "detect_anomaly": True, "deterministic": True},
         Hardware(profiler="simple", detect_anomaly=True, deterministic=True)),
        ({"log_every_n_steps": 1, "accumulate_grad_batches": 1, "enable_checkpointing": True}, Hardware()),
        ({"target": "postrain.hardware.trainer.Hardware", "precision": "32-true", "accelerator": "auto"}, Hardware()),
        ({"target": "postrain.hardware.trainer.Hardware", "precision": "bf16"}, Hardware(precision="bf16")),
    ],
)  # fmt: skip
def test_lightning_trainer_node_becomes_hardware(
    options: dict[str, Any], hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert instantiate(node(**options)) == hardware


def test_all_unsupported_keys_of_a_template_are_listed(config: dict[str, Any]) -> None:
    assert errors(config, **TEMPLATE) == [
        f"trainer.{key}: unknown key; did you mean method.num_train_epochs or method.updates?" for key in UNSUPPORTED
    ]


@pytest.mark.parametrize("name", inspect.signature(lightning.Trainer).parameters)
def test_every_lightning_trainer_option_is_supported_or_refused(name: str, config: dict[str, Any]) -> None:
    supported = {"accelerator": "cpu", "strategy": "ddp", "devices": 2, "num_nodes": 2, "precision": "bf16-mixed"}
    supported |= {"deterministic": True, "profiler": "simple", "detect_anomaly": True}
    if name in supported:
        assert not errors(config, **{name: supported[name]})
    else:
        (line,) = errors(config, **{name: "other"})
        assert line.startswith(f"trainer.{name}: unknown key; ")
        assert "known keys" not in line


def test_fp16_is_refused_with_the_reason(config: dict[str, Any]) -> None:
    (line,) = errors(config, precision="16-mixed")
    assert line.startswith("trainer.precision: expected one of fp32, bf16-mixed, bf16, got '16-mixed'; fp16 gives NaN")


@pytest.mark.parametrize("options", [{"strategy": "fsdp", "shard_size": 3}, {"strategy": "ddp", "shard_size": 2}])
def test_copies_need_a_divisor_of_sharded_ranks(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.shard_size=\d: expected strategy=fsdp and a divisor of 4 ranks"):
        Hardware(devices=4, **options).check()
    assert Hardware(devices=4, strategy="fsdp", shard_size=2).shards == 2
    assert Hardware(devices=4, strategy="fsdp").shards == 4


def test_checkpoints_are_written_to_their_file_without_a_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.fabric.plugins.io.torch_io._atomic_save", None)
    writer = Hardware().make_trainer([], [], tmp_path).strategy.checkpoint_io
    writer.save_checkpoint({"weights": torch.ones(3)}, tmp_path / "new" / "a.ckpt")
    assert torch.equal(writer.load_checkpoint(tmp_path / "new" / "a.ckpt", weights_only=True)["weights"], torch.ones(3))


def test_tf32_is_set_for_the_run_only_and_recomputes_sampled_log_probabilities(tmp_path):
    words = ("method=grpo", "method.updates=1", "evaluation.completions=0", "data.source.count=16")
    assert "rollout/is_mean" not in records(small_run(tmp_path, *words))[-1]
    found = records(small_run(tmp_path, *words, "trainer.float32_matmul_precision=high"))[-1]
    assert found["rollout/is_mean"] == pytest.approx(1, abs=1e-3)
    assert torch.get_float32_matmul_precision() == "highest"


def test_fit_keeps_the_precision_of_the_caller(monkeypatch):
    configs: list[TrainConfig] = []
    monkeypatch.setattr("postrain.fit.execute", lambda program, config, **_: configs.append(config))
    monkeypatch.setattr("postrain.fit.Run", lambda *_: None)
    method: Any = pt.SFT(*pt.load_model("nano"), data=[{"prompt": "2 + 2 =", "completion": " 4"}])
    method.trainer = SimpleNamespace(default_root_dir="")
    torch.set_float32_matmul_precision("medium")
    try:
        method.fit()
    finally:
        torch.set_float32_matmul_precision("highest")
    assert configs[0].trainer.float32_matmul_precision == "medium"
