"""A study from its YAML and its command line, and overrides in Hydra's grammar."""

from __future__ import annotations

import pytest

from postrain.config.override_text import format_override, format_value, parse_value
from postrain.errors import ConfigError
from postrain.jobs.study import Plot, Study, read, settings, short
from tests.training_runs import CONF

NAMES = sorted(path.stem for path in (CONF.parent / "sweep").glob("*.yaml"))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(
        "# Mine\nquestion: Which?\nbase: [method=ppo]\ngrid: {method.kl_coef: [0.1, 0.4]}\nseeds: [0, 1]\n"
        "metric: gold/total\nplot: {x: eval/kl/exact}\n"
    )
    return tmp_path


def test_study_is_read_from_its_file(root):
    name, study, shared = read(["sweep=mine"], ["method.epochs=2"], root)
    assert (name, shared) == ("mine", ["method.epochs=2"])
    assert study == Study(
        question="Which?",
        base=("method=ppo",),
        grid={"method.kl_coef": [0.1, 0.4]},
        seeds=(0, 1),
        metric="gold/total",
        plot=Plot(x="eval/kl/exact"),
    )
    assert read([f"sweep={root}/sweep/mine.yaml"], [], root) == (name, study, [])


def test_command_line_wins_over_the_file(root):
    words = ["sweep=mine", "++method.kl_coef=0.2,0.3", "++seed=5,6", "++sweep.metric=eval/loss", "++sweep.plot.y=b"]
    _, study, _ = read(words, [], root)
    assert study.grid == {"method.kl_coef": [0.2, 0.3]}
    assert study.seeds == (5, 6)
    assert study.metric == "eval/loss"
    assert study.plot == Plot(x="eval/kl/exact", y="b")
    assert read(["sweep=mine", "++sweep.grid.method.kl_coef=[1.0]"], [], root)[1].grid == {"method.kl_coef": [1.0]}


def test_single_value_replaces_what_varies(root):
    _, study, shared = read(["sweep=mine"], ["method.kl_coef=0.33", "seed=7", "method.epochs=2"], root)
    assert study.grid == {"method.kl_coef": [0.33]}
    assert study.seeds == (7,)
    assert shared == ["method.epochs=2"]


def test_resumed_study_is_the_recorded_one(root):
    saved = root / "sweep.yaml"
    saved.write_text("name: mine\nwords: [sweep=mine]\ngrid: {a: [1, 2]}\nseeds: [3]\nstarted_in: x\n")
    name, study, _ = read(["sweep=mine", "++a=1,2,5"], [], root, saved)
    assert name == "mine"
    assert study == Study(grid={"a": [1, 2, 5]}, seeds=(3,))


def test_lists_alone_are_a_study(root):
    name, study, _ = read(["method=ppo,dpo", "++seed=0,1", "++method.epochs=range(1,4)"], [], root)
    assert name == "multirun"
    assert study == Study(grid={"method": ["ppo", "dpo"], "method.epochs": [1, 2, 3]}, seeds=(0, 1))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=mine", "++sweep.metrik=a"], "sweep.metrik: unknown key; did you mean sweep.metric?"),
        (["sweep=mine", "++sweep.seeds=[a]"], "sweep.seeds: expected a list of integers or null, got ['a']"),
        (["sweep=other.yaml"], "sweep=other.yaml: other.yaml cannot be read: No such file or directory"),
        (["sweep=mine,other"], "sweep=mine,other: expected one study"),
        (["++method.kl_coef=interval(0,1)"], "++method.kl_coef=interval(0,1): expected the values themselves"),
        (["method=glob(*)"], "method=glob(*): expected the values themselves"),
        (["sweep=mine", "++sweep.seeds=[]"], "sweep.seeds: expected at least one value"),
        (["sweep=mine", "++sweep.grid.method.kl_coef=[]"], "sweep.grid.method.kl_coef: expected at least one value"),
    ],
)
def test_mistake_is_one_line(words, message, root):
    with pytest.raises(ConfigError) as caught:
        read(words, [], root)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_settings_are_all_combinations():
    found = list(settings(Study(grid={"a.b": [1, 2], "c": ["x"]}, jobs={"one": ["d=1"], "two": []})))
    assert [setting.values for setting in found] == [
        {"setting": name, "a.b": value, "c": "x"} for name in ("one", "two") for value in (1, 2)
    ]
    assert found[0].overrides == ("d=1", "a.b=1", "c=x")
    assert found[0].label == "one b=1 c=x"


def test_short_keys_are_unique():
    assert short({"method.kl_coef": 0, "data.seed": 0, "model.seed": 0}) == ["kl_coef", "data.seed", "model.seed"]


def test_values_are_formatted_in_hydras_grammar():
    values = (None, True, 1e-5, "a b", "it's", [1, "x"], {"a": None}, "runs/x-1.2")
    assert [format_value(value) for value in values] == [
        "null", "true", "1e-05", "'a b'", "'it\\'s'", "[1,x]", "{a:null}", "runs/x-1.2",
    ]  # fmt: skip
    assert format_override("k", "1,2") == "k='1,2'"


@pytest.mark.parametrize("text", ["1", "true", "null", "1e-5", "it's", "a\\", "a\\'b", "", "[x]", "été", "gold/total"])
def test_formatted_text_parses_to_itself(text):
    assert parse_value(format_value(text)) == text


@pytest.mark.parametrize("name", NAMES)
def test_every_sweep_asks_a_question(name):
    lines = (CONF.parent / "sweep" / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# ")
    assert 10 < len(lines[0]) <= 110
    found, study, _ = read([f"sweep={name}"], [], CONF.parent)
    assert found == name
    assert study.question.endswith("?")
