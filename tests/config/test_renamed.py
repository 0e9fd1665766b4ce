"""Old names of keys, options and metrics work for one version and print their new name once."""

import json
import sys

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from postrain.cli.user_conf import use_user_conf
from postrain.config import old_names, renamed
from postrain.config.foreign_keys import suggest_key
from postrain.config.groups import groups_of, listing
from postrain.config.overrides import forced
from postrain.config.tree import complete
from postrain.errors import ConfigError
from postrain.jobs.study import read
from postrain.report.folders import read_run
from postrain.runs.folder import RunFolder
from postrain.runs.resume import changed_config, saved_config
from postrain.training.config import TrainConfig
from tests.training_runs import CONF


@pytest.fixture(autouse=True)
def announced_once():
    renamed.announce.cache_clear()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("method.resample=1", "method.dynamic_sampling=1"),
        ("++method.sync_mix=0.5", "++method.ref_mixup_alpha=0.5"),
        ("method.reference_logps=cached", "method.precompute_ref_log_probs=true"),
        ("method.reference_logps='fresh'", "method.precompute_ref_log_probs=false"),
        ("method.reference_logps=none", "method.reference_free=true"),
        ("method.ratio=sequence", "method.loss_options.importance_sampling_level=sequence"),
        ("method.objective=cispo", "method.loss=cispo"),
        ("method.delta=4", "method.loss_options.delta=4"),
        ("method.kl_target=6", "method.adaptive_kl_target=6"),
        ("stage.ppo.method.kl_horizon=9", "stage.ppo.method.adaptive_kl_horizon=9"),
        ("method.target_kl=0.1", "method.target_kl=0.1"),
        ("method.mixture=0.5", "method.mixture_coef=0.5"),
        ("method.ratio_other=1", "method.ratio_other=1"),
        ("method.num_generations=4", "method.group_size=4"),
        ("teacher=runs/a", "reference=runs/a"),
        ("stage.small.teacher=runs/a", "stage.small.reference=runs/a"),
        ("stage.ppo.held.method.scale=none", "stage.ppo.held.method.scale=none"),
        ("stage.ppo.method.scale=none", "stage.ppo.method.scale_rewards=none"),
        ("keep=best", "selection=best"),
        ("stage.pairs.keep.count=2", "stage.pairs.selection.count=2"),
        ("keep.at_least=0.5", "selection.min_reward=0.5"),
        ("evaluation=wins", "evaluation=win_rate"),
        ("evaluation.measures.wins.against=x", "evaluation.tasks.win_rate.against=x"),
        ("evaluation.shown=4", "evaluation.logged_samples=4"),
        ("shown=4", "logged_samples=4"),
        ("stage.judged.shown=4", "stage.judged.logged_samples=4"),
        ("~evaluation.measures.kl", "~evaluation.tasks.kl"),
        ("+evaluation/measure@evaluation.measures.kl=kl", "+evaluation/task@evaluation.tasks.kl=kl"),
        ("data=wordings", "data=paraphrases"),
        ("data=wordings,world_stories", "data=paraphrases,world_stories"),
        ("data=world_judgements", "data=world_unpaired_preferences"),
        ("data.source.kind=judgements", "data.source.kind=unpaired_preferences"),
        ("data.source.kind=preferences,judgements", "data.source.kind=preferences,unpaired_preferences"),
        ("data.source.asked=[a]", "data.source.eval_prompts=[a]"),
        ("environment.room=9", "environment.max_observation_tokens=9"),
        ("environment.call_seconds=9", "environment.timeout=9"),
        ("method.reference_logps=cached,fresh", "method.precompute_ref_log_probs=true,false"),
        ("+evaluation/measure@evaluation.measures.wins=wins", "+evaluation/task@evaluation.tasks.win_rate=win_rate"),
        ("sweep.picture.x=eval/kl/exact", "sweep.plot.x=eval/kl/exact"),
        ("sweep.grid.method.scale=[none]", "sweep.grid.method.scale_rewards=[none]"),
    ],
)
def test_old_override_gets_its_new_name(old, new):
    assert renamed.override(old) == new
    assert renamed.override(new) == new


def test_one_clip_is_refused_and_both_clips_are_named():
    # GRPO has a default for each clip, so clip_low=0.3 would leave the upper one at 0.2.
    assert renamed.override("method.clip=0.3") == "method.clip=0.3"
    assert renamed.config({"method": {"clip": 0.3}}) == {"method": {"clip": 0.3}}
    assert suggest_key("method.clip", {"method.clip_low", "method.clip_high"}.__contains__) == (
        "did you mean method.clip_low or method.clip_high? (set both for a symmetric clip)"
    )


def test_list_of_old_values_of_different_keys_is_one_line():
    with pytest.raises(
        ConfigError, match=r"^method\.reference_logps=cached,none: these values are now .*one key only$"
    ):
        forced(["method.reference_logps=cached,none"], CONF, root="config", multirun=True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_self_", "_self_"),
        ("measure/wins@measures.wins", "task/win_rate@tasks.win_rate"),
        ("/evaluation/measure/kl@evaluation.measures.kl", "/evaluation/task/kl@evaluation.tasks.kl"),
        ({"override /keep": "mine"}, {"override /selection": "mine"}),
        ({"/data": "wordings"}, {"/data": "paraphrases"}),
        ({"measure@measures.kl": "kl"}, {"task@tasks.kl": "kl"}),
        ({"optional reward": None}, {"optional reward": None}),
    ],
)
def test_old_entry_of_a_defaults_list_gets_its_new_name(old, new):
    assert renamed.defaults([old]) == [new]
    assert renamed.defaults([new]) == [new]


def test_old_option_of_the_same_group_in_a_defaults_list_gets_its_new_name(capsys):
    entries = ["wins", "kl", "wins@tasks.mine", "_self_"]
    assert renamed.defaults(entries, "evaluation") == ["win_rate", "kl", "win_rate@tasks.mine", "_self_"]
    assert renamed.defaults(["wins"], "data") == ["wins"]
    assert "note: evaluation=wins is now evaluation=win_rate" in capsys.readouterr().err


def test_class_path_of_a_composed_config_gets_its_new_name(capsys):
    node = OmegaConf.create({"reward": {"_target_": "postrain.rewards.weighted.WeightedSum", "parts": {}}})
    assert complete(node, TrainConfig).reward["_target_"] == "postrain.rewards.base.WeightedSum"
    assert "postrain.rewards.weighted.WeightedSum is now postrain.rewards.base.WeightedSum" in capsys.readouterr().err


def test_renamed_argument_of_a_class_gets_its_new_name_at_any_depth(capsys):
    code = {"_target_": "postrain.rewards.code.Code", "seconds": 3}
    mine = {"_target_": "mine.Reward", "seconds": 3}
    plain = {"reward": {"_target_": "postrain.rewards.base.WeightedSum", "parts": {"tests": code, "mine": mine}}}
    parts = renamed.config(plain)["reward"]["parts"]
    assert parts == {"tests": {"_target_": "postrain.rewards.code.Code", "timeout": 3}, "mine": mine}
    assert capsys.readouterr().err == (
        "note: reward.parts.tests.seconds is now reward.parts.tests.timeout; the old name works until version 0.4\n"
    )


@pytest.mark.parametrize(
    "given", [{"_target_": "postrain.rewards.code.Code", "timeout": 3}, {"_target_": "mine.Reward", "seconds": 3}]
)
def test_override_of_a_resumed_run_by_the_old_argument_of_a_class_is_applied(given):
    # Without reward=code on the command line, the composed config has the node of another class.
    saved = {"reward": {"_target_": "postrain.rewards.code.Code", "timeout": 5}}
    new = {"reward": {"_target_": "postrain.rewards.code.Code", "timeout": 3}}
    assert changed_config(saved, {"reward": given}, ["++reward.seconds=3"]) == new


def test_old_group_folder_of_a_user_is_read(tmp_path, monkeypatch, capsys):
    (tmp_path / "conf" / "keep").mkdir(parents=True)
    (tmp_path / "conf" / "keep" / "mine.yaml").write_text("# Mine\ndefaults: [all_correct, _self_]\nat_least: 0.5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    use_user_conf()
    groups_of.cache_clear()
    words = forced(["keep=mine"], CONF, root="generate")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("generate", words).selection.min_reward == 0.5
    assert ["mine", "Mine"] in [line.split() for line in listing(CONF, "selection").splitlines()]
    err = capsys.readouterr().err
    assert "note: conf/keep/mine is now conf/selection/mine" in err
    assert "note: selection.at_least is now selection.min_reward" in err
    groups_of.cache_clear()
    with pytest.raises(ConfigError, match="the group keep is now selection; rename the folder keep"):
        groups_of(CONF, str(tmp_path / "conf"))


def test_new_name_is_printed_once(capsys):
    words = ["method.resample=1", "method.resample=2", "method.num_generations=4"]
    assert forced(words, CONF, root="config")[1] == "++method.dynamic_sampling=2"
    assert capsys.readouterr().err == (
        "note: method.resample is now method.dynamic_sampling; the old name works until version 0.4\n"
    )


def test_saved_config_is_read_with_new_keys(tmp_path, capsys):
    old = {
        "method": {"aggregation": "dapo", "scale": "none", "reference_logps": "fresh", "delta": None, "clip": 0.3},
        "evaluation": {"measures": {"wins": {"against": "x"}, "kl": {}}, "tasks": {"gold": {}}},
        "keep": {"count": 1},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert saved_config(RunFolder(tmp_path)) == {
        "method": {
            "clip_low": 0.3,
            "loss_options": {"delta": None},
            "scale_rewards": "none",
            "loss_type": "dapo",
            "precompute_ref_log_probs": False,
        },
        "evaluation": {"tasks": {"gold": {}, "win_rate": {"against": "x"}, "kl": {}}},
        "selection": {"count": 1},
    }
    assert capsys.readouterr().err == ""


def test_new_key_overrides_its_old_name():
    assert renamed.config({"method": {"scale": "batch", "scale_rewards": "none"}}) == {
        "method": {"scale_rewards": "none"}
    }


def test_study_with_old_names_is_read_with_new_names(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "question: q\nbase: [method=grpo]\ngrid: {method.resample: [0, 2]}\nmetric: eval/win/mixture\n"
        "columns: [group/useful]\npicture: {x: kl/step, y: eval/logp_change/chosen}\n"
    )
    _, study, _ = read(["sweep=mine"], [], tmp_path)
    assert study.grid == {"method.dynamic_sampling": [0, 2]}
    assert (study.metric, study.columns) == ("eval/win_rate/mixture", ("group/with_gradient",))
    assert (study.plot.x, study.plot.y) == ("kl/old_policy", "eval/log_ratio/chosen")


def test_run_of_an_earlier_version_is_read_with_new_metrics(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"update": 1, "kl/step": 0.5, "eval/logp_change/chosen": 2}))
    changes = {"win/mixture": [0.5, 0.6]}
    (tmp_path / "result.json").write_text(json.dumps({"changes": changes, "metric": "win/mixture"}))
    run = read_run(tmp_path)
    assert run.metrics == {"kl/old_policy": ([1], [0.5]), "eval/log_ratio/chosen": ([1], [2.0])}
    assert run.result == {"changes": {"win_rate/mixture": [0.5, 0.6]}, "metric": "win_rate/mixture"}


def test_no_source_file_uses_an_old_name():
    old = [
        *(old_names.VALUES.keys() - {"data.source.kind"}),
        *(key for key in old_names.KEYS if "." in key),
        *old_names.METRICS,
        *old_names.METRIC_FAMILIES,
    ]
    # The beginning of present names.
    beginnings = ("undecided", "method.scale", "method.ratio", "method.mask_truncated", "method.mixture")
    old = [name for name in old if name not in beginnings]
    table = CONF.parent / "postrain" / "config" / "old_names.py"
    files = [path for folder in ("conf", "sweep", "postrain") for path in (CONF.parent / folder).rglob("*.*")]
    texts = {path: path.read_text() for path in files if path.suffix in (".py", ".yaml", ".md") and path != table}
    assert {(path.name, name) for path, text in texts.items() for name in old if name in text} == set()


@pytest.mark.parametrize("value", ["other", ["cached"], None])
def test_value_without_a_replacement_stays_unchanged(value):
    plain = {"method": {"reference_logps": value}}
    assert renamed.config(plain, quiet=True) == plain
