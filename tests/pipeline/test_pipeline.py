"""Whole pipelines through the command line: checked before the first stage, stopped between stages, gone on with."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from postrain.callbacks.interrupt import Interrupted
from postrain.folder import RunFolder
from postrain.jsonl import JsonLines
from postrain.pipeline import runner
from postrain.pipeline.summary import Result
from tests.pipeline.made import LAB
from tests.runs import CONF, records
from tests.test_main import run

# Two updates of each training stage and a few short completions.
SMALL = (
    "method.updates=2",
    "method.batch_size=8",
    "evaluation=quick",
    "evaluation.completions=2",
    "data.eval_rows=8",
    "rollout.max_new_tokens=12",
    "logger=none",
    "report=false",
)
REASONING = (
    *SMALL,
    "pipeline=reasoning",
    "prompts=6",
    "samples=2",
    "stage.rejection.keep=all",
    "stage.rejection.keep.at_least=null",
    "stage.sft.method.batch_size=2",
    "stage.cold_start.data.source.count=32",
)
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


def contents(folder: Path) -> list:
    """All that the stages of a pipeline measured and wrote, without what a clock decides."""
    trained = [records(RunFolder(folder / stage)) for stage in STAGES]
    return [*trained, *(JsonLines(folder / stage / "completions.jsonl").read() for stage in STAGES)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    assert run(*REASONING, f"paths.output={output}") == 0
    return only(output)


def test_every_stage_has_its_folder_and_takes_what_the_earlier_ones_made(whole):
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == STAGES
    assert all(status(whole / stage)["status"] == "done" for stage in STAGES)
    took = {stage: OmegaConf.load(whole / stage / "config.yaml") for stage in STAGES}
    assert took["2-grpo"].model.path == str(whole / "1-cold_start" / "model")
    assert took["3-rejection"].model.path == str(whole / "2-grpo" / "model")
    assert took["4-sft"].data.path == str(whole / "3-rejection" / "data.jsonl")
    assert took["4-sft"].model.path == took["1-cold_start"].model.path == "bundled:nano"
    manifest = json.loads((whole / "2-grpo" / "manifest.json").read_text())
    assert manifest["model"]["name"] == "reasoning-1-cold_start"
    assert f"model.path={whole / '1-cold_start' / 'model'}" in manifest["reproduce"]


def test_it_ends_in_one_table(whole):
    lines = (whole / "summary.md").read_text().splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == [
        *("cold_start", "grpo", "rejection", "sft"),
        *("test.base", "test.cold_start", "test.grpo", "test.sft"),
    ]
    assert "right, greedy | right, sampled" in lines[0]
    assert all("±" in line for line in lines[-4:])


def test_stopped_between_stages_it_goes_on_and_repeats_nothing(whole, tmp_path, capsys, monkeypatch):
    def stopped(*args: object, **kwargs: object) -> None:
        raise Interrupted(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(runner, "EXECUTE", {**runner.EXECUTE, "generate": stopped})
        assert run(*REASONING, f"paths.output={tmp_path}") == 143
    folder = only(tmp_path)
    assert status(folder) | {"reason": "SIGTERM", "status": "interrupted"} == status(folder)
    done = {path: path.read_bytes() for stage in STAGES[:2] for path in (folder / stage).rglob("*") if path.is_file()}
    moved = shutil.move(folder, tmp_path / "moved")
    assert run(f"resume={moved}") == 0
    said = capsys.readouterr().out
    assert said.count("done before") == 2
    assert all((moved / path.relative_to(folder)).read_bytes() == content for path, content in done.items())
    assert contents(moved) == contents(whole)
    assert status(moved)["status"] == "done"


def test_a_finished_pipeline_changes_no_more(whole, capsys):
    assert run(f"resume={whole}", "stage.grpo.method.updates=3") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "stage grpo is done" in line
    assert run(f"resume={whole}", "pipeline=reasoning") == 2
    assert "start a new pipeline" in capsys.readouterr().err


def test_a_failed_stage_names_itself_and_can_be_gone_on_with_otherwise(tmp_path, capsys, monkeypatch):
    calls = []
    real = dict(runner.EXECUTE)
    monkeypatch.setattr(
        runner,
        "EXECUTE",
        {
            "generate": real["generate"],
            "train": lambda *a, **k: calls.append(k["place"].name) or real["train"](*a, **k),
        },
    )
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    (tmp_path / "conf" / "pipeline" / "two.yaml").write_text(
        "# Two\nstages:\n  make: {generate: [keep=best]}\n"
        "  learn: [method=sft, 'data.path=${stages.make.data}', data.template=plain]\n"
    )
    words = [*SMALL, "pipeline=two", "prompts=6", "samples=2", "method.batch_size=2", "keep.at_least=7"]
    where = ["--config-dir", str(tmp_path / "conf")]
    assert run(*words, f"paths.output={tmp_path}", *where) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: stage make: keep: no completion of 6 prompts is worth keeping")
    folder = only(tmp_path)
    assert status(folder)["reason"].startswith("stage make: ")
    assert calls == []
    assert run(f"resume={folder}", "stage.make.keep.at_least=0", *where) == 2
    assert "keep.at_least: 7 → 0" in capsys.readouterr().err
    assert run(f"resume={folder}", "stage.make.keep.at_least=0", "allow_change=true", *where) == 0
    assert calls == ["2-learn"]


def test_a_mistake_in_the_last_stage_is_found_before_the_first_starts(tmp_path, capsys):
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


def test_a_reference_to_an_unknown_stage_is_one_line(tmp_path, capsys):
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    bad = LAB.replace("${stages.policy}", "${stages.polycy}")
    (tmp_path / "conf" / "pipeline" / "lab.yaml").write_text(bad)
    assert run("pipeline=lab", f"paths.output={tmp_path / 'runs'}", "--config-dir", str(tmp_path / "conf")) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line == ("error: stage picture: ${stages.polycy}: no earlier stage gives polycy; did you mean policy?")
    assert not (tmp_path / "runs").exists()


def test_a_laboratory_with_branches_and_a_picture_is_only_yaml(tmp_path, capsys):
    (tmp_path / "conf" / "pipeline").mkdir(parents=True)
    (tmp_path / "conf" / "pipeline" / "lab.yaml").write_text(LAB)
    words = [*SMALL, "pipeline=lab", "prompts=4", "data.source.count=32", "stage.picture.title=Mood"]
    # Stories have no end in twelve tokens.
    words += ["stage.best.rollout.max_new_tokens=48", "stage.policy.held.seed=3"]
    where = ["--config-dir", str(tmp_path / "conf")]
    assert run(*words, "stage.picture.tilte=x", f"paths.output={tmp_path}", *where) == 2
    assert "stage picture: call.tilte: unknown key; did you mean call.title?" in capsys.readouterr().err
    assert run(*words, f"paths.output={tmp_path}", *where) == 0
    folder = only(tmp_path)
    picture = json.loads((folder / "4-picture" / "picture.json").read_text())
    assert picture == {"title": "Mood", "best": True, "free": True, "held": True}
    configs = [OmegaConf.load(folder / f"2-policy-{branch}" / "config.yaml") for branch in ("free", "held")]
    assert [(config.method.kl_coef, config.seed) for config in configs] == [(0.01, 0), (0.5, 3)]


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "pipeline").glob("*.yaml")))
def test_every_pipeline_composes_and_fits(name, tmp_path, capsys, monkeypatch):
    """All of it but the running."""
    monkeypatch.setattr(runner, "_advance", lambda *args, **kwargs: None)
    monkeypatch.setattr(runner, "result", lambda step, root: Result(step.stage.name, "", {}, None))
    assert run(f"pipeline={name}", f"paths.output={tmp_path}") == 0, capsys.readouterr().err
