"""The command that resumes a folder says again what the folder cannot decide, so that it can be pasted."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from postrain.cli.confirmations import confirmations
from postrain.cli.main import report_error, resume_overrides
from postrain.config.trust import UntrustedFolder, override_items
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
    """A run that is paid by a function of its user's."""
    made = RunFolder.at(tmp_path_factory.mktemp("runs") / "run")
    made.config.write_text(OmegaConf.to_yaml(composed(WORDS)))
    return made.path


def test_what_is_said_again_is_enough_to_resume(folder: Path) -> None:
    config, words = composed(WORDS), confirmations(folder)
    with pytest.raises(ConfigError, match=r"asks for reward\.function"):
        UntrustedFolder(folder, override_items([])).check(config, TrainConfig)
    UntrustedFolder(folder, override_items(words)).check(config, TrainConfig)
    assert shlex.split(resume_overrides(folder)) == [f"resume={folder}", f"reward.function='{OWN}'"]


def test_a_message_that_tells_to_resume_says_all_of_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_error(ConfigError(f"the disk is full; free some space and go on with resume={folder}")) == 2
    assert (
        capsys.readouterr().err
        == f"error: the disk is full; free some space and go on with {resume_overrides(folder)}\n"
    )
    report_error(ConfigError("resume=nowhere, or another"))
    assert capsys.readouterr().err == "error: resume=nowhere, or another\n"


def test_a_pipeline_names_the_stage(tmp_path: Path) -> None:
    node = {"stages": {"sft": ["method=sft"], "ppo": ["method=ppo"]}}
    configs = (composed(["method=sft"]), composed(WORDS))
    stages = zip(stages_of(node), configs, strict=True)
    jobs = tuple(replace(stage, overrides=(), config=config) for stage, config in stages)
    Pipeline(name="x", node=node, overrides=(), jobs=jobs).save(tmp_path)
    assert confirmations(tmp_path) == [f"stage.ppo.reward.function='{OWN}'"]


def test_a_sweep_says_it_once_for_all_jobs(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(OmegaConf.to_yaml({"words": [], "flags": ["--config-dir", "/mine"]}))
    (tmp_path / "jobs.json").write_text(json.dumps([{"confirm": [f"reward.function='{OWN}'"]}] * 2))
    assert confirmations(tmp_path) == ["--config-dir=/mine", f"reward.function='{OWN}'"]


def test_a_folder_that_cannot_be_read_adds_nothing(tmp_path: Path) -> None:
    assert confirmations(tmp_path) == []
    (tmp_path / "config.yaml").write_text("[")
    assert confirmations(tmp_path) == []
