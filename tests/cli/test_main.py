"""The command line end to end: one line and exit code 2 for a mistake, no run folder, exact resume."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from postrain import __version__
from postrain.cli.main import start
from postrain.runs.folder import RunFolder
from postrain.runs.interrupt import Interrupted
from postrain.runs.status import Status, StatusRecorder
from tests.training_runs import CONF, METHODS, SMALL, composed, final_state, records, resumed, same, shallow, small_run

ROOT = CONF.parent


def run(*words: str) -> int:
    """Runs train.py with these arguments; returns the exit code."""
    try:
        return start(["train.py", *words], CONF)
    except SystemExit as end:
        return int(end.code or 0)


def only_folder(output: Path) -> RunFolder:
    (path,) = output.glob("*/*/*")
    return RunFolder(path)


def test_missing_method_lists_the_methods(capsys):
    assert run() == 2
    output = capsys.readouterr().out
    assert all(f"\n  {method} " in output for method in METHODS)


def test_help_shows_groups_and_examples(capsys):
    assert run("--help") == 0
    output = capsys.readouterr().out
    assert all(
        f"{group}: " in output for group in ("method", "model", "adapter", "data", "reward", "trainer", "logger")
    )
    assert output.count("python train.py method=") >= 2
    assert "python train.py -m method=ppo" in output


def test_all_mistakes_are_reported_in_one_error(capsys, tmp_path):
    words = ["method.learning_rat=1", "+method.clipp=0.1", "method.kl_coef=-1", "method.epochs=two", "lr=1"]
    assert run("method=ppo", *words, f"paths.output={tmp_path}") == 2
    lines = capsys.readouterr().err.splitlines()
    found = "\n".join(lines)
    for part in ("learning_rate", "method.clip", "method.kl_coef: expected", "method.epochs: expected", "lr"):
        assert part in found
    assert len(lines) == 5
    assert not list(tmp_path.iterdir())


def test_cfg_with_resume_shows_the_config_of_the_run_with_the_overrides(capsys, tmp_path):
    folder = RunFolder.at(tmp_path / "run")
    folder.config.write_text(OmegaConf.to_yaml(composed(["method=dpo", "seed=5", "method.updates=7"])))
    assert run("--cfg", "job", f"resume={folder.path}", "method.updates=3") == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert (shown.method._target_, shown.method.updates, shown.seed) == ("postrain.methods.dpo.DPO", 3, 5)
    assert (shown.resume, shown.allow_change) == (str(folder.path), False)
    assert run("--cfg", "job", f"resume={tmp_path / 'no'}") == 2
    assert capsys.readouterr().err.startswith("error: resume: there is no folder")


def test_misspelt_option_gets_a_suggestion(capsys):
    assert run("method=pppo") == 2
    assert "did you mean ppo" in capsys.readouterr().err


def test_stand_in_model_is_named_in_folder_manifest_and_console(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    assert run("method=sft", "model=gpt2", *SMALL, f"paths.output={tmp_path / 'runs'}") == 0
    folder = only_folder(tmp_path / "runs")
    assert "standin" in folder.path.parent.name
    assert json.loads(folder.manifest.read_text())["stand_in_for"] == "openai-community/gpt2"
    assert "stood in for openai-community/gpt2" in (folder.model / "README.md").read_text()
    assert "gpt2" in capsys.readouterr().err
    assert run("method=sft", "model=gpt2", "model.offline=fail", *SMALL, f"paths.output={tmp_path / 'no'}") == 2
    assert not (tmp_path / "no").exists()


REWARDS = {
    "raises": ("raise KeyError('no')", "KeyError"),
    "wrong_length": ("return [1.0]", "1 "),
    "not_a_number": ("return [float('nan') for _ in completions]", "nan"),
    "constant": ("return [0.5 for _ in completions]", "constant reward"),
    "unscorable": ("return [None for _ in completions]", "could be scored"),
}


@pytest.mark.parametrize("kind", REWARDS)
def test_bad_reward_function_stops_before_training(kind, capsys, tmp_path):
    body, expected = REWARDS[kind]
    source = tmp_path / "mine.py"
    source.write_text(f"def reward(prompts, completions, **columns):\n    {body}\n")
    words = ["method=ppo", "reward=function", f"reward.function={source}:reward", *SMALL]
    assert run(*words, f"paths.output={tmp_path / 'runs'}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    assert list(tmp_path.glob("runs/*")) == []


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.max_length=9999", "data.max_length=9999: the model has a context of"),
        ("method.learning_rate=5", "method.learning_rate=5: 3 updates at this rate"),
    ],
)
def test_run_that_is_refused_before_its_first_update_leaves_no_folder(word, message, capsys, tmp_path):
    assert run("method=sft", *SMALL, word, f"paths.output={tmp_path / 'runs'}") == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.glob("runs/*")) == []


def test_unwritable_output_folder_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert run("method=sft", *SMALL, f"paths.output={tmp_path / 'file' / 'runs'}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "paths.output" in line


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run, which tests only copy."""
    return small_run(tmp_path_factory.mktemp("whole"), *shallow("sft"))


@pytest.fixture
def copied(whole, tmp_path):
    """A copy of the finished run."""
    return RunFolder(shutil.copytree(whole.path, tmp_path / Path(*whole.path.parts[-3:])))


def test_damaged_checkpoint_is_skipped_and_the_resumed_run_is_identical(whole, copied, capsys):
    newest = sorted(copied.checkpoints.glob("*.ckpt"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed(copied)
    assert "damaged" in capsys.readouterr().err
    assert records(copied) == records(whole)
    for path in copied.checkpoints.glob("*.ckpt"):
        path.write_bytes(b"PK")
    capsys.readouterr()
    assert run(f"resume={copied.path}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "damaged" in line


def test_run_killed_before_its_first_checkpoint_restarts(whole, copied):
    for path in copied.checkpoints.glob("*.ckpt"):
        path.unlink()
    resumed(copied)
    assert records(copied) == records(whole)
    assert copied.samples.read() == whole.samples.read()


def test_resume_with_other_settings_lists_the_changes(copied, capsys):
    assert run(f"resume={copied.path}", "method.updates=4", "method.learning_rate=0.5") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "method.updates: 3 → 4" in line
    assert "method.learning_rate: 0.002 → 0.5" in line
    assert run(f"resume={copied.path}", "method.updates=4", "allow_change=true") == 0
    assert [record["update"] for record in records(copied)] == [0, 1, 2, 3, 4]


def test_killed_process_resumes_from_its_last_checkpoint(tmp_path):
    words = [*SMALL, *shallow("sft"), "method.updates=24", "trainer.checkpoint_every=2", f"paths.output={tmp_path}"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path
    )
    # Earlier checkpoints are deleted, so wait for the fourth or a later one.
    while all(path.stem < "update=000004" for path in tmp_path.glob("sft/*/*/checkpoints/update=*.ckpt")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = only_folder(tmp_path)
    assert folder.status.read()["status"] == "running"
    last = int(sorted(folder.checkpoints.glob("*.ckpt"))[-1].stem.partition("=")[2])
    assert last < 24
    resumed(folder)
    whole = small_run(tmp_path / "whole", *shallow("sft"), "method.updates=24", "trainer.checkpoint_every=24")
    assert records(folder) == records(whole)
    assert same(final_state(folder)["state_dict"], final_state(whole)["state_dict"])


def test_version_is_that_of_postrain(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"postrain {__version__}\n"


def test_shell_completion_lists_the_options_of_a_group(capsys, monkeypatch):
    assert run("-sc", "install=bash") == 0
    assert "complete -o nospace -o default -F hydra_bash_completion" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "python train.py logger=")
    assert run("-sc", "query=bash") == 0
    assert capsys.readouterr().out.split() == [f"logger={name}" for name in ("none", "tensorboard", "trackio", "wandb")]


def test_hydra_error_is_one_line(capsys):
    for word in ("~data.quality.balance", "method.adam_betas={a:1}", "seed=${nope:1}", "name='${'", "method@x=sft"):
        assert run("method=sft", word) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_missing_package_leaves_no_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run("method=sft", "logger=trackio", *SMALL[:-5], f"paths.output={tmp_path / 'runs'}") == 2
    line = 'error: logger: the package trackio is not installed; run pip install "postrain[trackio]"'
    assert capsys.readouterr().err.splitlines() == [line]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("root", "line"),
    [
        ("config", "interrupted; resume with: python train.py resume=runs/sft/nano/x"),
        ("generate", "interrupted; resume with: python -m postrain.generate resume=runs/sft/nano/x"),
        ("evaluate", "interrupted; an evaluation cannot be resumed; start it again"),
    ],
)
def test_last_line_after_ctrl_c_is_the_resume_command(root, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def interrupted(*_):
        with StatusRecorder(Status(Path("runs/sft/nano/x/status.json"))):
            raise Interrupted(signal.SIGINT)

    Path("runs/sft/nano/x").mkdir(parents=True)
    words = {"config": "method=sft", "generate": "seed=0", "evaluate": "model=nano"}
    with pytest.raises(SystemExit) as end:
        start(["program", words[root]], CONF, config_name=root, run=interrupted)
    assert end.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == line
