"""The printed resume command repeats the overrides that a folder cannot confirm itself."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from postrain.cli.confirmations import confirmations
from postrain.cli.main import report_error
from postrain.cli.resume_hints import resume_overrides
from postrain.config.override_text import resume_command, resume_word
from postrain.config.trust import UntrustedFolder, override_items, plain_value
from postrain.errors import ConfigError
from postrain.jobs.pipeline import Pipeline
from postrain.jobs.stages import stages_of
from postrain.runs.folder import RunFolder
from postrain.training.config import TrainConfig
from tests.training_runs import composed

OWN = "my rewards.py:f"
WORDS = ("method=ppo", "reward=function", f"reward.function='{OWN}'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a reward function of the user."""
    made = RunFolder.at(tmp_path_factory.mktemp("runs") / "run")
    made.config.write_text(OmegaConf.to_yaml(composed(WORDS)))
    return made.path


def test_confirmations_are_sufficient_to_resume(folder: Path) -> None:
    config, words = composed(WORDS), confirmations(folder)
    with pytest.raises(ConfigError, match=r"sets reward\.function"):
        UntrustedFolder(folder, override_items([])).check(config, TrainConfig)
    UntrustedFolder(folder, override_items(words)).check(config, TrainConfig)
    assert shlex.split(resume_overrides(folder)) == [f"resume={folder}", f"reward.function='{OWN}'"]


def test_message_with_resume_is_completed_by_confirmations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(ConfigError(f"the disk is full; free some space and continue with resume={folder}")) == 2
    assert (
        capsys.readouterr().err
        == f"error: the disk is full; free some space and continue with {resume_overrides(folder)}\n"
    )
    report_error(ConfigError("resume=nowhere, or another"))
    assert capsys.readouterr().err == "error: resume=nowhere, or another\n"


def test_confirmation_of_a_pipeline_names_the_stage(tmp_path: Path) -> None:
    node = {"stages": {"sft": ["method=sft"], "ppo": ["method=ppo"]}}
    configs = (composed(["method=sft"]), composed(WORDS))
    stages = zip(stages_of(node), configs, strict=True)
    jobs = tuple(replace(stage, overrides=(), config=config) for stage, config in stages)
    Pipeline(name="x", node=node, overrides=(), jobs=jobs).save(tmp_path)
    assert confirmations(tmp_path) == [f"stage.ppo.reward.function='{OWN}'"]


def test_confirmations_of_a_sweep_are_unique(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(OmegaConf.to_yaml({"words": [], "flags": ["--config-dir", "/mine"]}))
    (tmp_path / "jobs.json").write_text(json.dumps([{"confirm": [f"reward.function='{OWN}'"]}] * 2))
    assert confirmations(tmp_path) == ["--config-dir=/mine", f"reward.function='{OWN}'"]


def test_unreadable_folder_has_no_confirmations(tmp_path: Path) -> None:
    assert confirmations(tmp_path) == []
    (tmp_path / "config.yaml").write_text("[")
    assert confirmations(tmp_path) == []


@pytest.mark.parametrize("name", ["ü", "a=b", "my runs/it's", "x,y(1)", "1"])
def test_printed_resume_command_is_read_as_the_folder(name: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(name)
    folder.mkdir(parents=True)
    _, _, *words = shlex.split(resume_command("train", folder))
    (override,) = OverridesParser.create().parse_overrides(words)
    assert plain_value(override.value()) == name
    report_error(ConfigError(f"the disk is full; continue with {resume_word(folder)}"))
    assert capsys.readouterr().err == f"error: the disk is full; continue with {resume_overrides(folder)}\n"
