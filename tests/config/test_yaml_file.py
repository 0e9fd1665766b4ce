"""YAML files are read and written as OmegaConf does; one that is too large is refused before it is expanded."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from postrain.cli.user_conf import UserGroups
from postrain.config import yaml_file
from postrain.config.arguments import composition_errors
from postrain.config.yaml_file import dump_yaml, load_yaml
from postrain.errors import ConfigError
from postrain.report.values import read_yaml
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config

# 10^9 values: each line holds ten copies of the line before.
BOMB = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10))


def test_alias_bomb_in_a_run_folder_is_one_line(tmp_path):
    (tmp_path / "config.yaml").write_text(BOMB)
    with pytest.raises(ConfigError, match=r"its aliases stand for more than 1,000,000 values"):
        saved_config(RunFolder(tmp_path))
    assert read_yaml(tmp_path / "config.yaml") == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "mine.yaml: its aliases stand for more than 1,000,000 values; write fewer values"),
        ("a: {b: 1\nc: [", "mine.yaml, line 2: expected ',' or '}', but got ':'; correct the YAML"),
        ("a: " + "[" * 100_000, "mine.yaml: it is nested too deep; write fewer levels"),
        ("a: *b", "mine.yaml, line 1: found undefined alias 'b'; correct the YAML"),
    ],
)
def test_mistake_in_a_users_option_is_one_line(text, message, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        UserGroups("user", f"postrain-user://{tmp_path}").load_config("method/mine")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Strings that are read as something else unless they are quoted, and numbers.
VALUES = (
    *("1e5", "1e-5", "-1e3", "1.", ".5", ".5e-3", "1_000", "1:30", "190:20:30.15", "0x1F", "017", "0b11"),
    *(
        "2024-01-01",
        "yes",
        "no",
        "on",
        "null",
        "~",
        "",
        "???",
        "true",
        ".nan",
        "-.inf",
        "=",
        "<<",
        "${x}",
        "$",
        "\\${x}",
    ),
    *(
        "- a",
        "a: b",
        "#x",
        "a #b",
        "it's",
        "\u2028",
        "\x85",
        "a\nb",
        " a",
        "\t",
        "!x",
        "&a",
        "*a",
        "[1",
        "|",
        "é",
        "\U0001f600",
    ),
    *(1, 10**400, 1.0, 1e-5, 1e300, float("inf"), -0.0, True, None, [], {}, [[]], b"x"),
)


@pytest.mark.parametrize("value", VALUES)
def test_values_are_read_back_here_and_by_omegaconf(value, tmp_path):
    written = {"key": value, "list": [value, value], "map": {value if isinstance(value, str) else "name": value}}
    file = tmp_path / "some.yaml"
    file.write_text(dump_yaml(written), encoding="utf-8")
    assert repr(load_yaml(file)) == repr(OmegaConf.to_container(OmegaConf.load(file))) == repr(written)


def test_every_config_is_read_as_omegaconf_reads_it():
    root = Path(__file__).parents[2]
    for file in [*(root / "conf").rglob("*.yaml"), *(root / "sweep").rglob("*.yaml")]:
        assert repr(load_yaml(file)) == repr(OmegaConf.to_container(OmegaConf.load(file)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "found duplicate key a"),
        ("null: 1", "found a key that is null"),
        ("[1]: 2", "found unhashable key"),
        ("a: !!set {x}", "could not determine a constructor"),
        ("a: !!python/object:os.x 1", "could not determine a constructor"),
        ("a: ${b", "no viable alternative"),
        ('a: "\\x24{b"', "no viable alternative"),
        ("text", "expected keys and values, got str"),
        ("a: " + "[" * 100_000, "nested deeper than 500 levels"),
    ],
)
def test_text_that_is_no_config_is_refused(text, message, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises((yaml_file.yaml.YAMLError, OmegaConfBaseException, ValueError), match=message):
        load_yaml(tmp_path / "config.yaml")


def test_aliases_and_their_number_are_counted_as_copies(tmp_path, monkeypatch):
    file = tmp_path / "some.yaml"
    file.write_text("base: &base {lr: 1, beta: 2}\nrun: {<<: *base, beta: 3}\nlist: [*base, *base]\n")
    found = load_yaml(file)
    assert found["run"] == {"lr": 1, "beta": 3}
    assert found["list"] == [found["base"]] * 2
    # base: 5 values with its keys; run: 5 + 4; list: 1 + 2 * 5; three keys and the whole.
    monkeypatch.setattr(yaml_file, "MAX_NODES", 29)
    load_yaml(file)
    monkeypatch.setattr(yaml_file, "MAX_NODES", 28)
    with pytest.raises(yaml_file.yaml.YAMLError, match="more than 28 values"):
        load_yaml(file)


def test_invalid_yaml_of_a_config_group_names_file_and_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("stages:\n  a: [method=sft, model.path=${stages.x.folder}]\n")
    with pytest.raises(ConfigError) as caught, composition_errors():
        OmegaConf.load(file)
    assert str(caught.value) == f"{file}, line 2: expected ',' or ']', but got '{{'; correct the YAML"
