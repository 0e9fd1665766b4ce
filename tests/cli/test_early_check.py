"""Mistakes that are reported before torch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from postrain.cli.early_check import check_early
from postrain.config.check import check
from postrain.config.tree import complete
from postrain.errors import ConfigError
from postrain.training.config import TrainConfig
from tests.training_runs import CONF, forced

MISTAKES: list[list[str]] = [
    ["method=dpo", "method.lerning_rate=1"],
    ["method=ppo", "method.kl_ceof=0.1", "method.updates=x"],
    ["method=grpo", "methd.updates=3", "rollout.temp=1"],
    ["method=sft", "early_stop.flat=2", "data.columns.promt=a"],
    ["method=grpo", "reward=judge", "reward.modle=a"],
    ["method=sft", "data=mix", "data.mix={world_sums:1,world_stories:3}", "data.replay=base.txt", "method.betta=1"],
]


def composed(words: list[str]) -> DictConfig:
    """A config as Hydra composes it: without defaults, references not resolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", forced(words))


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_early_message_of_a_misspelt_key_equals_the_full_check(words: list[str]) -> None:
    config = composed(words)
    with pytest.raises(ConfigError) as early:
        check_early(config, "config")
    whole: Any = OmegaConf.to_container(complete(config, TrainConfig), resolve=True)
    with pytest.raises(ConfigError) as full:
        check(whole, TrainConfig)
    assert sorted(str(early.value).splitlines()) == sorted(str(full.value).splitlines())


def test_valid_config_passes_the_early_check() -> None:
    check_early(composed(["method=grpo", "reward=weighted"]), "config")


def test_key_of_a_component_with_a_default_class_passes_the_early_check() -> None:
    words = ["data.quality.dedupe=true", "data.steps.joiner=x", "method.curriculum.replay=0.5", "early_stop.kl_above=3"]
    config = composed(["method=grpo", *words])
    check_early(config, "config")
    whole: Any = OmegaConf.to_container(complete(config, TrainConfig), resolve=True)
    check(whole, TrainConfig)


def test_stages_of_a_pipeline_are_checked_when_they_are_planned() -> None:
    check_early(composed(["pipeline=dpo", "stage.sft.seed=2", "samples=3"]), "config")


def test_missing_data_file_is_reported_early() -> None:
    with pytest.raises(ConfigError, match=r"data\.path: there is no file nowhere\.jsonl"):
        check_early(composed(["method=dpo", "data.path=nowhere.jsonl"]), "config")


def test_data_option_without_a_class_names_the_line_that_it_lacks() -> None:
    config = composed(["method=ppo"])
    config.data = {"path": "rows.jsonl"}
    with pytest.raises(ConfigError) as caught:
        check_early(config, "config")
    (line,) = str(caught.value).splitlines()
    assert line.startswith("data: expected a node with _target_ (DataModule), got {'path': 'rows.jsonl'} without")
    assert line.endswith("begins with `defaults: [jsonl, _self_]`")


def test_misspelt_key_imports_neither_torch_nor_lightning(tmp_path: Path) -> None:
    program = (
        "import atexit, sys; from postrain.cli.main import start; "
        "atexit.register(lambda: print({'torch', 'lightning', 'transformers', 'datasets'} & set(sys.modules))); "
        "start(['train.py', 'method=dpo', 'method.lerning_rate=1'])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == "error: method.lerning_rate: unknown key; did you mean method.learning_rate?\n"
    assert (done.stdout, done.returncode) == ("set()\n", 2)


def test_problems_are_left_out_by_kind_and_not_by_text():
    config = composed(["method=dpo", "method.betta=1", "method.updates='x without _target_'"])
    with pytest.raises(ConfigError) as error:
        check_early(config, "config")
    assert str(error.value).splitlines() == [
        "method.betta: unknown key; did you mean method.beta?",
        "method.updates: expected an integer >= 1, got 'x without _target_'",
    ]
