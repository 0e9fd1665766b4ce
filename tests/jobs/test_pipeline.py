"""Whole pipelines from the command line: checked before the first stage, interrupted between stages, resumed."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from postrain.config import extras
from postrain.errors import ConfigError
from postrain.jobs import pipeline, plan, session
from postrain.jsonl import JsonLines
from postrain.methods.learning_rate_search import SUSPICIOUS
from postrain.runs.folder import RunFolder
from postrain.runs.interrupt import Interrupted
from tests.cli.test_main import run
from tests.jobs.pipelines import LAB, TWO
from tests.training_runs import CONF, records, unresolved

# Two updates of each training stage and a few short completions.
SMALL = (
    "method.updates=2",
    "method.batch_size=8",
    "evaluation=quick",
    "evaluation.completions=2",
    "data.eval_rows=8",
    "data.source.count=64",
    "rollout.max_new_tokens=12",
    "logger=none",
    "report=false",
)
REASONING = (
    *SMALL,
    "pipeline=reasoning",
    "prompt_count=6",
    "samples=2",
    "stage.rejection.selection=all",
    "stage.rejection.selection.min_reward=null",
    "stage.sft.method.batch_size=2",
    "stage.cold_start.data.source.count=32",
)
PIPELINES = sorted(path.stem for path in (CONF / "pipeline").glob("*.yaml"))
# Experiments that define a pipeline.
STAGED = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if "\npipeline:" in path.read_text())
STAGES = [
    "1-cold_start",
    "2-grpo",
    "3-rejection",
    "4-sft",
    *(f"5-test-{m}" for m in ("base", "cold_start", "grpo", "sft")),
]


def only(output: Path) -> Path:
    (folder,) = output.glob("pipeline/*/*")
    return folder


def status(folder: Path) -> dict:
    return RunFolder(folder).status.read()


@pytest.fixture(scope="session")
def conf(tmp_path_factory) -> list[str]:
    """Arguments that add the pipelines of pipelines.py."""
    folder = tmp_path_factory.mktemp("conf")
    (folder / "pipeline").mkdir()
    (folder / "pipeline" / "two.yaml").write_text(TWO)
    (folder / "pipeline" / "lab.yaml").write_text(LAB)
    (folder / "pipeline" / "bad.yaml").write_text(LAB.replace("${stages.policy}", "${stages.polycy}"))
    return ["--config-dir", str(folder)]


def contents(folder: Path) -> list:
    """The metrics and data of the stages of pipeline two, without times."""
    made = [JsonLines(folder / "2-make" / name).read() for name in ("completions.jsonl", "data.jsonl")]
    return [records(RunFolder(folder / "1-learn")), *made]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert run(*REASONING, f"paths.output={output}") == 0
    return only(output)


def test_every_stage_has_its_folder_and_uses_products_of_earlier_stages(whole):
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == STAGES
    assert all(status(whole / stage)["status"] == "done" for stage in STAGES)
    configs = {stage: OmegaConf.load(whole / stage / "config.yaml") for stage in STAGES}
    assert configs["2-grpo"].model.path == str(whole / "1-cold_start" / "model")
    assert configs["3-rejection"].model.path == str(whole / "2-grpo" / "model")
    assert configs["4-sft"].data.path == str(whole / "3-rejection" / "data.jsonl")
    assert configs["4-sft"].model.path == configs["1-cold_start"].model.path == "bundled:nano"
    manifest = json.loads((whole / "2-grpo" / "manifest.json").read_text())
    assert manifest["model"]["name"] == "reasoning-1-cold_start"
    assert f"model.path={whole / '1-cold_start' / 'model'}" in manifest["reproduce"]


def test_summary_has_a_row_for_each_stage(whole):
    lines = (whole / "summary.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        *("cold_start", "grpo", "rejection", "sft"),
        *("test.base", "test.cold_start", "test.grpo", "test.sft"),
    ]
    assert "accuracy, greedy | accuracy, sampled" in lines[0]
    assert all(line.count(" [") >= 2 for line in lines[-4:])


@pytest.fixture(scope="module")
def two(tmp_path_factory, conf) -> Path:
    output = tmp_path_factory.mktemp("two")
    assert run(*SMALL, "pipeline=two", f"paths.output={output}", *conf) == 0
    return only(output)


def test_resumed_pipeline_repeats_no_finished_stage(two, conf, tmp_path, capsys, monkeypatch):
    execute = session.execute

    def stopped(program: Any, *args: Any, **kwargs: Any) -> float | None:
        if program is session.GENERATE:
            raise Interrupted(signal.SIGTERM)
        return execute(program, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(session, "execute", stopped)
        assert run(*SMALL, "pipeline=two", f"paths.output={tmp_path}", *conf) == 143
    folder = only(tmp_path)
    assert (status(folder)["status"], status(folder)["reason"]) == ("interrupted", "SIGTERM")
    done = {path: path.read_bytes() for path in (folder / "1-learn").rglob("*") if path.is_file()}
    assert "metrics.jsonl" in {path.name for path in done}
    # A pipeline can be moved.
    moved = folder.rename(tmp_path / "moved")
    assert run(f"resume={moved}") == 0
    assert capsys.readouterr().out.count("done before") == 1
    assert all((moved / path.relative_to(folder)).read_bytes() == content for path, content in done.items())
    assert contents(moved) == contents(two)
    assert status(moved)["status"] == "done"


def test_pairwise_reward_of_a_generation_is_refused_before_the_first_stage(conf, tmp_path, capsys):
    words = ("stage.make.reward=pairwise", "stage.make.reward.function=m.py:f")
    assert run(*SMALL, "pipeline=two", *words, f"paths.output={tmp_path}", *conf) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: stage make: reward: PairwiseFunction compares two completions")
    assert not list(tmp_path.iterdir())


def test_saved_pipeline_of_an_earlier_version_is_read_with_new_keys(two, tmp_path):
    saved: Any = OmegaConf.to_container(OmegaConf.load(two / "pipeline.yaml"))
    config = saved["steps"][1]["config"]
    config["keep"] = config.pop("selection")
    (tmp_path / "pipeline.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(saved)))
    load = pipeline.Pipeline.load
    assert load(tmp_path).jobs[1].config == load(two).jobs[1].config


def test_finished_stage_cannot_change_on_resume(two, conf, capsys):
    assert run(f"resume={two}", "stage.learn.method.updates=3", *conf) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "stage learn is finished" in line
    assert run(f"resume={two}", "pipeline=two", *conf) == 2
    assert "start a new pipeline" in capsys.readouterr().err


def test_failed_stage_names_itself_and_resumes_with_other_settings(two, conf, tmp_path, capsys):
    words = [*SMALL, "pipeline=two", "stage.make.selection.min_reward=7"]
    assert run(*words, f"paths.output={tmp_path}", *conf) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: stage make: selection: no completion of 6 prompts was selected")
    folder = only(tmp_path)
    assert status(folder)["reason"].startswith("stage make: ")
    assert run(f"resume={folder}", "stage.make.selection.min_reward=null", *conf) == 2
    assert "selection.min_reward: 7 → None" in capsys.readouterr().err
    assert run(f"resume={folder}", "stage.make.selection.min_reward=null", "allow_change=true", *conf) == 0
    assert capsys.readouterr().out.count("done before") == 1
    assert contents(folder) == contents(two)


def test_job_resumes_a_shared_stage_that_another_job_failed_in(two, conf, tmp_path, capsys, monkeypatch):
    """Job 0 fails in the stage both need, job 1 runs it in job 0's folder, and job 0 then finds it done."""
    sweep = tmp_path / "study" / "time-hash"
    sweep.mkdir(parents=True)
    (sweep / "sweep.yaml").write_text("name: x\n")
    directories = [sweep / "jobs" / name for name in ("00-a", "01-b")]
    words = [*SMALL, "pipeline=two", *conf]

    def broken(*args: object, **kwargs: object) -> None:
        raise ConfigError("no")

    with monkeypatch.context() as patched:
        patched.setattr(session, "PROGRAMS", {**session.PROGRAMS, "train": replace(session.TRAIN, run=broken)})
        assert run(*words, "stage.make.samples=1", f"hydra.run.dir={directories[0]}") == 2
    assert run(*words, f"hydra.run.dir={directories[1]}") == 0
    assert contents(directories[1]) == contents(two)
    assert not (directories[0] / "1-learn").is_symlink()
    assert (directories[1] / "1-learn").resolve() == directories[0] / "1-learn"
    capsys.readouterr()
    assert run(f"resume={directories[0]}", f"hydra.run.dir={directories[0]}") == 0
    assert capsys.readouterr().out.count("done before") == 1
    assert [status(directory)["status"] for directory in directories] == ["done", "done"]
    manifest = json.loads(RunFolder(directories[1] / "2-make").manifest.read_text())
    assert manifest["model"]["name"] == "study-1-learn"
    assert sorted(path.suffix for path in (sweep / "shared").iterdir()) == 3 * [".json"] + 3 * [".lock"]


def test_mistakes_of_all_stages_are_reported_before_the_first_starts(tmp_path, capsys):
    words = ["stage.test.sft.sampels=3", "stage.sft.method.learning_rat=1", "lr=1", "stage.sft.data.eval_path=no.jsonl"]
    assert run(*REASONING, *words, "stage.grpo.method=gpro", f"paths.output={tmp_path}") == 2
    lines = capsys.readouterr().err.removeprefix("error: ").splitlines()
    expected = [
        "stage cold_start, sft: lr: unknown key",
        "stage grpo: method=gpro: no such option; did you mean grpo?",
        "stage sft: method.learning_rat: unknown key; did you mean method.learning_rate?",
        "stage sft: data.eval_path: there is no file no.jsonl",
        "stage test.sft: sampels: unknown key; did you mean samples?",
    ]
    assert len(lines) == len(expected)
    assert all(any(line.startswith(start) for line in lines) for start in expected)
    assert not list(tmp_path.iterdir())


def test_reference_to_an_unknown_stage_is_one_line(conf, tmp_path, capsys):
    assert run("pipeline=bad", f"paths.output={tmp_path / 'runs'}", *conf) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == "error: stage picture: ${stages.polycy}: no earlier stage provides polycy; did you mean policy?"
    assert not (tmp_path / "runs").exists()


def test_pipeline_with_branches_evaluation_and_call_needs_only_yaml(conf, tmp_path, capsys):
    words = [*SMALL, "pipeline=lab", "prompt_count=4", "data.source.count=32", "stage.picture.title=Mood"]
    # Stories are longer than twelve tokens.
    words += ["stage.best.rollout.max_new_tokens=48", "stage.policy.held.seed=3", *conf]
    assert run(*words, "stage.picture.tilte=x", f"paths.output={tmp_path}") == 2
    assert "stage picture: call.tilte: unknown key; did you mean call.title?" in capsys.readouterr().err
    assert run(*words, f"paths.output={tmp_path}") == 0
    folder = only(tmp_path)
    picture = json.loads((folder / "5-picture" / "picture.json").read_text())
    assert picture == {"title": "Mood", "best": True, "free": True, "held": True}
    configs = [OmegaConf.load(folder / f"2-policy-{branch}" / "config.yaml") for branch in ("free", "held")]
    assert [(config.method.kl_coef, config.seed) for config in configs] == [(0.01, 0), (0.5, 3)]
    stats = json.loads((folder / "4-test" / "evaluation_stats.json").read_text())
    assert [model["name"] for model in stats["models"]] == ["lab-2-policy-held", "lab-2-policy-free", "nano"]
    # The result is that of the last stage with an objective; changes of other stages are prefixed with their names.
    result, last = (json.loads((path / "result.json").read_text()) for path in (folder, folder / "4-test"))
    assert (result["metric"], result["objective"]) == (last["metric"], last["objective"])
    policy = json.loads((folder / "2-policy-held" / "result.json").read_text())
    assert result["changes"]["policy.held/eval/reward/total"] == policy["changes"]["eval/reward/total"]
    assert result["changes"][last["metric"]] == last["changes"][last["metric"]]
    # An interrupted evaluation restarts without duplicating results.
    before = (folder / "4-test" / "lengths.jsonl").read_bytes()
    RunFolder(folder / "4-test").status.interrupted("SIGTERM")
    capsys.readouterr()
    assert run(f"resume={folder}") == 2
    again = "stage.picture._target_=tests.jobs.pipelines.draw"
    assert f"sets {again} (calls this function); repeat it" in capsys.readouterr().err
    assert run(f"resume={folder}", again) == 0
    assert capsys.readouterr().out.count("done before") == 5
    assert (folder / "4-test" / "lengths.jsonl").read_bytes() == before


@pytest.mark.parametrize("chosen", [*(f"pipeline={name}" for name in PIPELINES), *(f"experiment={e}" for e in STAGED)])
def test_every_built_in_pipeline_composes_and_is_valid(chosen, tmp_path, capsys, monkeypatch):
    """Plans the pipeline without running its stages."""
    monkeypatch.setattr(plan, "compose", unresolved)
    monkeypatch.setattr(extras, "installed", lambda package: True)
    jobs = []
    monkeypatch.setattr(pipeline.StageRunner, "advance", lambda self, job: jobs.append(job))
    monkeypatch.setattr(pipeline, "grid", lambda jobs, root: ([], []))
    assert run(chosen, f"paths.output={tmp_path}") == 0, capsys.readouterr().err
    assert not [job.name for job in jobs if job.kind == "train" and too_fast(job.config)]


def too_fast(config):
    """Whether a trial of a learning rate above SUSPICIOUS times the default may refuse the run; all models are nano."""
    method, adapter = config["method"], not config["adapter"]["_target_"].endswith("NoAdapter")
    default = get_class(method["_target_"]).rates.for_model(0, adapter=adapter)
    rate = method["learning_rate"]
    return method["check_learning_rate"] and isinstance(rate, float) and rate > SUSPICIOUS * default
