"""`--dry-run`: memory, time and disk of a run, without a run folder."""

import pytest

from postrain.cli.help import explain
from tests.cli.test_main import run
from tests.training_runs import SMALL


@pytest.mark.parametrize("words", [["method=dpo", "method.updates=50"], ["method=grpo", "trainer=ddp_cpu"]])
def test_dry_run_prints_estimates_and_leaves_nothing(words, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    assert run(*SMALL, *words, "--dry-run", f"paths.output={tmp_path / 'runs'}") == 0
    output = capsys.readouterr().out
    assert "memory estimate: " in output
    assert all(f"\n  {part} " in output for part in ("weights", "gradients", "optimizer", "activations"))
    if "trainer=ddp_cpu" in words:
        assert "time: measured for one process only" in output
    else:
        assert "(50 updates)" in output
        assert all(f"\n  {part} " in output for part in ("update", "evaluation", "reference", "disk"))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "method=sft", "seed=0,1"], "--dry-run: measures a single training run"),
        (["sweep=kl_coef"], "--dry-run: measures a single training run"),
        (["pipeline=dpo"], "--dry-run: measures a single new run; leave out pipeline="),
        (["method=sft", "data=jsonl"], "data.path"),
        (["method=sft", "data.max_length=9999"], "data.max_length=9999: the model has a context of"),
    ],
)
def test_dry_run_refuses_in_one_line(words, message, capsys):
    assert run(*words, "--dry-run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_a_missing_vllm_server_is_reported_at_once(capsys):
    server = ["rollout=vllm", "rollout.mode=server", "rollout.url=http://127.0.0.1:9"]
    assert run("method=grpo", *SMALL, *server, "--dry-run") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rollout.url=http://127.0.0.1:9:" in line
    assert "cannot be reached" in line


def test_help_describes_the_dry_run():
    assert "memory" in (explain("--dry-run") or "")
