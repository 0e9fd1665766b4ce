"""python -m postrain.evaluate: inherited groups, written files, and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from postrain.errors import ConfigError
from postrain.evaluate import evaluate
from postrain.evaluation.config import check_overrides, inherited
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.eval_models import EvalSource, SourceRun, unique_names
from postrain.evaluation.evaluate import EvalTaskError, data_mismatch_notes
from postrain.evaluation.likelihood import Perplexity
from postrain.evaluation.result_files import ModelResults, result
from postrain.evaluation.table import interval
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.jobs.session import EVALUATE, execute
from postrain.jsonl import JsonLines
from postrain.runs.folder import RunFolder
from tests import training_runs

SMALL = (
    "model=nano",
    "compare=[nano]",
    "evaluation=perplexity",
    "+evaluation/task@evaluation.tasks.gold=gold",
    "+evaluation/task@evaluation.tasks.kl=kl",
    "reference=nano",
    "evaluation.tasks.gold.prompts=3",
    "evaluation.tasks.kl.prompts=3",
    "data.eval_rows=4",
    "data.source.count=8",
    "rollout.max_new_tokens=6",
    "report=false",
    "logged_samples=2",
)


def composed(*overrides: str) -> dict[str, Any]:
    return training_runs.composed(overrides, "evaluate")


def run_evaluation(output: Path, *overrides: str) -> RunFolder:
    given = [*SMALL, *overrides]
    execute(EVALUATE, composed(*given, f"paths.output={output}"), overrides=given, group=None)
    return RunFolder(max((output / "evaluate" / "nano").iterdir()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return run_evaluation(tmp_path_factory.mktemp("runs"))


def completion_records(folder: RunFolder, name: str) -> Any:
    return json.loads((folder.path / name).read_text())


def test_stats_have_intervals_and_the_exact_model_input(folder: RunFolder) -> None:
    first, second = completion_records(folder, "evaluation_stats.json")["models"]
    assert (first["name"], second["name"]) == ("nano bundled:nano", "nano nano")
    loss = first["tasks"]["perplexity"]["metrics"]["loss"]
    assert loss["low"] < loss["value"] < loss["high"]
    assert loss["n"] == 4
    assert first["tasks"]["gold"]["example"].endswith("<|assistant|>\n")
    assert folder.status.read()["status"] == "done"
    assert completion_records(folder, "manifest.json")["reproduce"].startswith("python -m postrain.evaluate model=nano")


def test_equal_models_have_zero_differences_and_zero_kl(folder: RunFolder) -> None:
    stats = completion_records(folder, "evaluation_stats.json")
    gaps = {(one["task"], one["metric"]): one["value"] for one in stats["differences"]}
    assert ("perplexity", "loss") in gaps
    assert ("gold", "total") in gaps
    assert set(gaps.values()) == {0.0}
    kl = stats["models"][0]["tasks"]["kl"]["metrics"]["per_token"]["value"]
    assert kl == pytest.approx(0, abs=1e-6)


def test_records_and_responses_name_their_model(folder: RunFolder) -> None:
    records = JsonLines(folder.path / "perplexity.jsonl").read()
    assert len(records) == 8
    assert len({record["model"] for record in records}) == 2
    responses = completion_records(folder, "sample_responses.json")
    assert [set(one) for one in responses] == [{"model", "prompt", "completion", "gold"}] * 4


def test_result_is_the_default_or_the_configured_metric(folder: RunFolder, tmp_path: Path) -> None:
    result = completion_records(folder, "result.json")
    assert (result["metric"], result["direction"]) == ("perplexity/loss", "min")
    assert result["changes"]["gold/total"][0] == result["changes"]["gold/total"][1]
    assert result["values"]["gold/total"] == result["changes"]["gold/total"][1]
    assert len(result["values"]) > 4
    with pytest.raises(ConfigError, match="metric=perplexity/lost: not measured; available: perplexity/loss"):
        run_evaluation(tmp_path, "metric=perplexity/lost", "compare=[]")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        ([], "model.path: expected the model to evaluate"),
        (["model=nano", "evaluation=default"], "evaluation: this option has no tasks"),
        (["model=nano", "compare=[no/such/folder]"], "compare=no/such/folder: .*; give run folders"),
        (["model=nano", "metric=speed/all"], "metric=speed/all: expected TASK/METRIC"),
        (["model=nano", "trainer=ddp_cpu"], "trainer: an evaluation runs in one process"),
        (
            ["model=nano", "evaluation=win_rate", "evaluation.tasks.win_rate.against=no/such"],
            "win_rate.against=no/such: ",
        ),
        (["model=nano", "evaluation=best_of_n", "rollout.temperature=0"], r"rollout\.temperature=0: all samples"),
    ],
)
def test_config_errors_are_one_line_and_leave_no_folder(overrides: list[str], line: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=line):
        execute(EVALUATE, composed(*overrides, f"paths.output={tmp_path}"), overrides=overrides, group=None)
    assert not list(tmp_path.iterdir())


def test_failed_task_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Perplexity, eval_model: EvalModel) -> EvalResult:
        raise ConfigError("rows: there are none")

    monkeypatch.setattr(Perplexity, "__call__", refuse)
    with pytest.raises(EvalTaskError, match=r"^perplexity: rows: there are none; the other results are in "):
        run_evaluation(tmp_path, "compare=[]", "~evaluation.tasks.kl")
    folder = RunFolder(*(tmp_path / "evaluate" / "nano").iterdir())
    (one,) = completion_records(folder, "evaluation_stats.json")["models"]
    assert (one["tasks"]["perplexity"]["notes"], one["tasks"]["perplexity"]["metrics"]) == (
        ["rows: there are none"],
        {},
    )
    assert "gold/total" in completion_records(folder, "result.json")["values"]
    assert folder.status.read()["status"] == "failed"


def test_task_error_exits_with_code_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def execute(*args: Any, **keys: Any) -> float:
        raise EvalTaskError("win_rate: no")

    monkeypatch.setattr("postrain.jobs.session.execute", execute)
    config = OmegaConf.create({"debug": False})
    with pytest.raises(SystemExit) as ended:
        evaluate(config, [], None, None)
    assert (ended.value.code, capsys.readouterr().err) == (1, "error: win_rate: no\n")


@pytest.mark.parametrize("key", ["every", "completions", "logged_samples", "greedy"])
def test_keys_that_only_training_reads_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^evaluation\.{key}: applies to evaluation during training only"):
        check_overrides(["model=nano", f"evaluation.{key}=1"])
    check_overrides(["evaluation=all", "evaluation.tasks.gold.prompts=1", "logged_samples=1"])


def test_table_omits_infinite_intervals() -> None:
    alone = Estimate.mean([2.0])
    assert interval(alone, mark=True) == "2.00"
    assert interval(Estimate.mean([2.0, 2.5])) == r"2.25 \[-0.93, 5.43]"


def origin(path: Path, fingerprint: str = "aa") -> SourceRun:
    """A run folder with the files that an evaluation reads."""
    config = {
        "method": {},
        "data": {"path": "mine.jsonl", "eval_rows": 9},
        "reward": None,
        "rollout": {"temperature": 0.5},
        "seed": 3,
    }
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (path / "manifest.json").write_text(json.dumps({"data": {"source": "mine.jsonl", "fingerprint": fingerprint}}))
    (path / "model").mkdir()
    found = SourceRun.of(str(path / "model"))
    assert found is not None
    return found


def test_groups_are_inherited_from_the_run_unless_overridden(tmp_path: Path) -> None:
    run = origin(tmp_path / "sft" / "nano" / "one")
    config: dict[str, Any] = {"data": {"path": None, "eval_rows": 4}, "rollout": {"temperature": 1.0}, "reward": "r"}
    found, taken = inherited(config, run, ["data.eval_rows=4", "rollout=local"])
    assert found == {"data": {"path": "mine.jsonl", "eval_rows": 4}, "rollout": {"temperature": 1.0}, "reward": None}
    assert taken == ["data"]
    assert inherited(config, None, []) == (config, [])
    assert SourceRun.of(str(tmp_path)) is None
    assert SourceRun.of(str(run.folder.path / "merged")) == run


def test_note_for_runs_trained_on_different_data(tmp_path: Path) -> None:
    resolved: Any = None
    runs = [
        EvalSource(name=name, path=name, resolved=resolved, origin=origin(tmp_path / name, mark))
        for name, mark in (("a", "aa"), ("b", "bb"))
    ]
    (line,) = data_mismatch_notes(runs)
    assert "a on mine.jsonl, aa; b on mine.jsonl, bb" in line
    assert data_mismatch_notes(runs[:1] * 2) == []


def test_duplicate_model_names_get_their_run_names() -> None:
    made = ["a/2026-11-21_13-55-39-441fca32/model", "a/2026-11-21_13-55-40-aaaaaaaa"]
    assert unique_names(made, ["sft-nano"] * 2) == ["sft-nano 441fca32", "sft-nano aaaaaaaa"]
    paths = ["runs/sft/nano/monday", "runs/sft/nano/tuesday/model", "elsewhere/tuesday"]
    assert unique_names(paths, ["sft-nano"] * 3) == [
        "sft-nano monday",
        "sft-nano tuesday (1)",
        "sft-nano tuesday (2)",
    ]


def test_changes_are_from_the_first_compared_model_alone():
    """A metric that it lacks is not taken from the second one."""

    def measured(**values: float) -> ModelResults:
        found = {name: Estimate(value=value, low=0.0, high=1.0, n=9) for name, value in values.items()}
        own = {"kl": EvalResult(metrics=found)}
        paths = {"name": "a", "path": "a", "data": "d"}
        return ModelResults(**paths, results=own, seconds={}, parameters=1, failed=(), responses=())

    found = result([measured(exact=0.3, k1=0.2), measured(exact=0.1), measured(exact=0.5, k1=0.7)], None)
    assert found["values"] == {"kl/exact": 0.3, "kl/k1": 0.2}
    assert found["changes"] == {"kl/exact": [0.1, 0.3]}
