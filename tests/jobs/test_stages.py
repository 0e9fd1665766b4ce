"""The stages of a pipeline's YAML and the overrides of a command line for each, before anything is composed."""

from __future__ import annotations

from pathlib import Path

import pytest

from postrain.errors import ConfigError
from postrain.jobs.graph import Job, references
from postrain.jobs.stages import split, stage_overrides, stages_of, unused

LAB = {
    "stages": {
        "proxy": ["method=reward"],
        "ppo": {"train": ["method=ppo", "reward.path=${stages.proxy.folder}"], "each": {"low": ["a=1"], "high": []}},
        "best": {"generate": ["selection=best", "model.path=${stages.ppo.low.model}"]},
        "plot": {"call": "math.fsum", "arguments": {"runs": "${stages.ppo}", "data": ["${stages.best.data}"]}},
    }
}


def test_stages_come_in_order_a_branch_each():
    found = stages_of(LAB)
    assert [(stage.name, stage.kind, stage.folder) for stage in found] == [
        ("proxy", "train", "1-proxy"),
        ("ppo.low", "train", "2-ppo-low"),
        ("ppo.high", "train", "2-ppo-high"),
        ("best", "generate", "3-best"),
        ("plot", "call", "4-plot"),
    ]
    assert found[1].overrides == ("method=ppo", "reward.path=${stages.proxy.folder}", "a=1")


def test_references_resolve_to_paths_in_the_pipelines_folder():
    assert references(stages_of(LAB), Path("runs/x")) == {
        "proxy": {"folder": "runs/x/1-proxy", "model": "runs/x/1-proxy/model", "start": "runs/x/1-proxy/start"},
        "ppo": {
            branch: {"folder": f"{folder}", "model": f"{folder}/model", "start": f"{folder}/start"}
            for branch, folder in (("low", "runs/x/2-ppo-low"), ("high", "runs/x/2-ppo-high"))
        },
        "best": {"folder": "runs/x/3-best", "data": "runs/x/3-best/data.jsonl"},
        "plot": {"folder": "runs/x/4-plot"},
    }


@pytest.mark.parametrize(
    ("stages", "line"),
    [
        ({}, "pipeline: expected stages:"),
        ({"a": "method=sft"}, "pipeline.stages.a: expected a list of overrides"),
        ({"a": [{"method": "sft"}]}, "pipeline.stages.a: overrides are lists of texts"),
        ({"a": {"train": [], "generate": []}}, "pipeline.stages.a: expected a list of overrides"),
        ({"a": {"train": [], "eech": {}}}, "pipeline.stages.a.eech: unknown key"),
        ({"a-b": []}, "names are letters, digits and _"),
        ({"a": {"train": [], "each": {"b-c": []}}}, "pipeline.stages.a.b-c: "),
        ({"a": {"train": [], "each": {}}}, "pipeline.stages.a.each: "),
        (
            {"sft": [], "b": ["x=${stages.stf.model}"]},
            "stage b: ${stages.stf.model}: no earlier stage provides stf; did you mean sft?",
        ),
        (
            {"b": ["x=${stages.sft.model}"], "sft": []},
            "${stages.sft.model}: no earlier stage provides sft; there is nothing",
        ),
        (
            {"sft": [], "b": ["x=${stages.sft.data}"]},
            "${stages.sft.data}: no earlier stage provides data; there is folder, model, start",
        ),
    ],
)
def test_wrong_pipeline_is_one_line(stages, line):
    with pytest.raises(ConfigError) as caught:
        stages_of({"stages": stages})
    (message,) = str(caught.value).splitlines()
    assert line in message


def overrides_of_stage(overrides: list[str], stage: Job, *, takes: str = "method model data seed") -> list[str]:
    given = split(overrides, [stage])
    return stage_overrides(
        given, stage, lambda key: key.partition(".")[0] in takes.split(), {"method", "model", "data"}
    )[0]


OVERRIDES = ("method=ppo", "model=run", "model.path=${stages.sft.model}", "method.updates=5")
STAGE = Job(name="ppo.low", kind="train", folder="2-ppo-low", overrides=OVERRIDES)


def test_value_wins_over_the_yaml_and_option_only_where_none_is_chosen():
    assert overrides_of_stage(["method.updates=2", "seed=1"], STAGE) == [*OVERRIDES, "method.updates=2", "seed=1"]
    assert overrides_of_stage(["model=smollm2", "data=gsm8k"], STAGE) == [*OVERRIDES, "data=gsm8k"]


def test_shared_override_does_not_replace_a_reference():
    assert overrides_of_stage(["model.path=mine"], STAGE) == list(OVERRIDES)
    assert overrides_of_stage(["stage.ppo.model.path=mine"], STAGE) == [*OVERRIDES, "model.path=mine"]


def test_overrides_of_a_stage_come_last_and_of_a_branch_after_them():
    overrides = ["stage.ppo.low.seed=3", "stage.ppo.seed=2", "seed=1", "pipeline=x", "paths.output=y"]
    assert overrides_of_stage(overrides, STAGE) == [*OVERRIDES, "seed=1", "seed=2", "seed=3"]


def test_overrides_that_reach_no_stage_are_named():
    given = split(["model=smollm2", "logger=none", "seed=1"], [STAGE])
    _, reached = stage_overrides(given, STAGE, lambda key: key != "logger", {"model"})
    assert [line.partition(":")[0] for line in unused(given, reached)] == ["model=smollm2", "logger=none"]


def test_misspelt_stage_gets_a_suggestion():
    for override, message in (
        ("stage.pop.seed=1", "there is no stage pop; did you mean ppo?"),
        ("stage.ppo=1", "expected a setting of the stage, as in stage.ppo.seed=1"),
        ("stage.ppo.low=1", "expected a setting of the stage, as in stage.ppo.low.seed=1"),
    ):
        with pytest.raises(ConfigError, match=message.replace("?", r"\?")):
            split([override], [STAGE])
