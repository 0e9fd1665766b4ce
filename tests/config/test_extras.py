"""Missing optional packages are detected from the config of any program."""

from __future__ import annotations

import importlib.util

import pytest

from postrain.config.extras import INSTALL, KEYS, NAMES, check_packages
from postrain.config.schema import load_target
from postrain.errors import ConfigError
from tests.training_runs import composed


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["reward=math"],
         'reward.function: the package math_verify is not installed; run pip install "postrain[math]"'),
        (["reward=json"], 'reward.function: the package jsonschema is not installed; run pip install "postrain[json]"'),
        (["reward=reasoning_gym"],
         'reward: the package reasoning_gym is not installed; run pip install "postrain[tasks]"'),
        (["data=reasoning_gym"],
         'data.source: the package reasoning_gym is not installed; run pip install "postrain[tasks]"'),
        (["data.quality.near_dedupe=0.8"], "data.quality.near_dedupe: the package datasketch is not installed; run pip "
         'install "postrain[quality]"; null disables it'),
        (["reward=weighted", "+reward.parts.sum={_target_:postrain.rewards.function.Function,"
          "function:postrain.rewards.verified.math_equal,arguments:{}}"],
         'reward.parts.sum.function: the package math_verify is not installed; run pip install "postrain[math]"'),
        (["logger=wandb"], 'logger: the package wandb is not installed; run pip install "wandb"'),
        (["logger=trackio"], 'logger: the package trackio is not installed; run pip install "postrain[trackio]"'),
        (["adapter=qlora"], 'adapter: the package bitsandbytes is not installed; run pip install "postrain[quant]"'),
        (["adapter=continue", "adapter.load_in_4bit=true"],
         'adapter.load_in_4bit: the package bitsandbytes is not installed; run pip install "postrain[quant]"'),
        (["evaluation=lm_eval"],
         'evaluation.tasks.lm_eval: the package lm_eval is not installed; run pip install "postrain[eval]"'),
        (["rollout=vllm"], 'rollout: the package vllm is not installed; '
         'run pip install "postrain[vllm]" -c constraints-vllm.txt; '
         "rollout=local and rollout.mode=server do not need it"),
    ],
)  # fmt: skip
def test_missing_package_is_detected_from_the_config(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(["method=ppo", *words])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_packages(config)
    assert str(caught.value) == line


def test_config_without_optional_packages_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(["method=ppo"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_packages(config)


def test_vllm_server_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    config = composed(["method=ppo", "rollout=vllm", "rollout.mode=server", "rollout.url=http://a"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_packages(config)


def test_every_name_exists_and_every_package_has_an_install_command() -> None:
    assert all(map(load_target, NAMES))
    assert {*NAMES.values(), *KEYS.values()} <= set(INSTALL)
