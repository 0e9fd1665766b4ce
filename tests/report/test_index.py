"""The index of a folder of runs: every run and sweep, also with damaged files."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from postrain.errors import ConfigError
from postrain.report import __main__ as command
from postrain.report import is_running, write_report
from postrain.report.kinds import folders, kind_of
from postrain.report.runs_index import read_entries
from tests.report.sweeps import make_sweep
from tests.report.test_report import checked

Maker = Callable[..., Path]


def started_run(path: Path, state: str = "running", **status: object) -> Path:
    """A run that has measured two updates of five."""
    path.mkdir(parents=True)
    (path / "status.json").write_text(json.dumps({"status": state, "started": 1.8e9, **status}))
    (path / "manifest.json").write_text(json.dumps({"config": {"name": "mine", "method": {"updates": 5}}}))
    lines = [{"update": 0, "eval/accuracy": 0.5}, {"update": 2, "eval/accuracy": 0.75}]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def root(run_maker: Maker, tmp_path: Path) -> Path:
    """A finished run, a running one, a damaged one, a sweep of four jobs, and folders that are not runs."""
    root = tmp_path / "runs"
    run_maker(root, few=True)
    started_run(root / "deep" / "er" / "mine")
    broken = started_run(root / "broken", "failed", reason="<b>loss</b> is nan")
    for name in ("manifest.json", "metrics.jsonl"):
        (broken / name).write_bytes(b'\xff{"')
    make_sweep(root / "kl")
    comparison = root / "comparison" / "abcd"
    comparison.mkdir(parents=True)
    (comparison / "evaluation_stats.json").write_text("{}")
    (root / ".hidden" / "run").mkdir(parents=True)
    (root / ".hidden" / "run" / "metrics.jsonl").write_text("")
    (root / "loop").symlink_to(root)
    return root


def test_folders_finds_runs_at_any_depth_and_no_jobs_of_sweeps(root: Path) -> None:
    assert [(kind, str(path.relative_to(root))) for kind, path in folders(root)] == [
        ("run", "broken"),
        ("run", "deep/er/mine"),
        ("sweep", "kl"),
        ("run", "ppo/nano/2026-01-02_03-04-05-0123abcd"),
    ]


def test_entries_have_progress_and_metric_before_and_after(root: Path) -> None:
    by_name = {one.path.name: one for one in read_entries(root)}
    mine, sweep, broken = by_name["mine"], by_name["kl"], by_name["broken"]
    assert (mine.name, mine.state, mine.progress, mine.result) == (
        "mine",
        "running",
        "2/5",
        "eval accuracy 0.50 → 0.75",
    )
    assert (sweep.kind, sweep.progress) == ("sweep", "4/4 jobs")
    assert sweep.result.startswith("kl_coef=0.0 has the highest gold, 0.51")
    assert (broken.state, broken.result) == ("failed", "<b>loss</b> is nan")


def test_entry_of_a_run_with_the_initial_evaluation_only_has_one_value(tmp_path: Path) -> None:
    path = started_run(tmp_path / "one", "interrupted")
    (path / "metrics.jsonl").write_text('{"update": 0, "eval/accuracy": 0.5}\n{"update": 1, "loss": 2}\n')
    (entry,) = read_entries(tmp_path)
    assert (entry.result, json.loads(entry.data)) == (
        "eval accuracy 0.50",
        {"eval accuracy": ["0.50"], "loss": ["2.00"]},
    )


def test_a_run_with_a_pipe_in_its_folder_is_listed_and_not_read(tmp_path: Path) -> None:
    os.mkfifo(started_run(tmp_path / "odd") / "result.json")
    (entry,) = read_entries(tmp_path)
    assert (entry.state, entry.result.partition("odd/")[2]) == (
        "unknown", "result.json is neither a file nor a directory; remove it",
    )  # fmt: skip


def test_index_page_is_whole_escaped_and_reloads_while_a_run_trains(root: Path) -> None:
    text = checked(write_report(root).read_text(encoding="utf-8"))
    assert text.count("<tr data-path=") == 4
    assert "&lt;b&gt;loss&lt;/b&gt; is nan" in text
    assert '<meta http-equiv="refresh"' in text
    assert 'href="kl/report.html"' not in text  # It has no report yet.
    assert not re.search(r"<(link|iframe|img)\b|@import|\bsrc=|https?://", text)
    # Now the folder also contains the page itself.
    write_report(root, formats=["csv"])
    assert "mine,run,,running,2/5,eval/accuracy,0.5,0.75," in (root / "table.csv").read_text()


def test_an_empty_folder_has_an_index_and_a_foreign_one_an_error(tmp_path: Path) -> None:
    text = checked(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "No runs yet" in text
    assert "<script" not in text
    assert write_report(tmp_path) == tmp_path / "report.html"
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ConfigError, match=r"is not the folder of a run, .*it holds: notes.txt"):
        kind_of(tmp_path)


def test_watch_writes_until_nothing_is_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = started_run(tmp_path / "runs" / "mine")
    waits: list[float] = []

    def finish(seconds: float) -> None:
        waits.append(seconds)
        (run / "status.json").write_text('{"status": "done"}')

    monkeypatch.setattr(command.time, "sleep", finish)
    monkeypatch.setattr("sys.argv", ["report", str(tmp_path / "runs"), "--watch"])
    assert is_running(tmp_path / "runs")
    assert command.main() == 0
    assert waits == [5]
    page = Path(capsys.readouterr().out.strip()).read_text(encoding="utf-8")
    assert "http-equiv" not in page
    assert not is_running(run)


def test_index_needs_no_torch(root: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from postrain.report import write_report\n"
        "write_report(Path(sys.argv[1])); heavy = {'torch', 'lightning', 'matplotlib', 'hydra'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
