"""postrain help and --help: every key has a description from its signature and the docstring below its field."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from postrain.cli import help as helper
from postrain.cli.commands import main
from postrain.cli.main import root_of
from postrain.config.reference import Entry, json_schema, options
from postrain.config.schema import Key
from tests.training_runs import composed


@pytest.fixture(scope="module")
def known() -> list[tuple[str, Entry]]:
    return list(helper.known_keys())


def test_every_key_has_a_description_of_at_most_400_characters(known: list[tuple[str, Entry]]) -> None:
    external = ("callbacks", "optim", "logger")  # may be classes of other libraries
    lacking = [f"{where} {entry.path}" for where, entry in known if not entry.description]
    assert [one for one in lacking if not one.split(" ")[-1].startswith(external)] == []
    assert {entry.path for _, entry in known if len(entry.description) > 400} == set()


@pytest.mark.parametrize(
    ("word", "lines"),
    [
        (
            "method.kl_coef",
            [
                "method.kl_coef: a number >= 0",
                "  Weight of KL(policy ‖ reference); 0 needs no reference.",
                "  default 0.1 with method=ppo",
            ],
        ),
        ("rollout.max_new_tokens", ["  default ${data.completion_tokens} with rollout=local, rollout=vllm"]),
        ("data.completion_tokens", ["  default 56 with data=world_sums", "the default of rollout.max_new_tokens."]),
        ("data.columns.prompt", ["data.columns.prompt: text or null"]),
        ("data.source.noise", ["  default 0.1 with data=world_demonstrations"]),
        ("early_stop.kl_above", ["early_stop.kl_above: a number > 0 or null"]),
        ("adapter", ["adapter: An adapter (LoRA, QLoRA) on the model;", "  lora       LoRA: trains low-rank"]),
        ("optim=muon", ["optim=muon\n  optim.momentum=0.95", "adjust_lr_fn=match_rms_adamw"]),
        ("sweep=kl_coef", ["sweep=kl_coef\n  question: ", "method.kl_coef:"]),
        ("sweep", ["  kl_coef "]),
        ("experiment=recipe/smollm2_dpo", ["# DPO of SmolLM2-135M", "- recipe/base/dpo"]),
        ("hydra/launcher", ["  local  "]),
        ("hydra/launcher=local", ["  hydra.launcher.jobs=2\n    an integer >= 1. "]),
        ("grpo", ["  method.group_size=8\n    an integer >= 1. Completions of each prompt"]),
    ],
)
def test_help_describes_keys_groups_and_options(word: str, lines: list[str]) -> None:
    text = helper.explain(word) or ""
    assert [line for line in lines if line not in text] == []


def test_help_of_an_old_key_explains_the_present_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["postrain", "help", "method.sync_every"]) == 0
    found = capsys.readouterr()
    assert found.out.startswith("method.ref_sync_steps: ")
    assert found.err.startswith("note: method.sync_every is now method.ref_sync_steps; ")


def test_help_of_an_unknown_key_suggests_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["postrain", "help", "method.kl_coeff"]) == 2
    assert capsys.readouterr().err == (
        "error: method.kl_coeff: no such key, group or option; did you mean method.kl_coef?\n"
    )


def test_help_of_a_config_lists_all_of_its_keys() -> None:
    config = composed(["method=grpo"])
    text = helper.describe_config(OmegaConf.create(config), root_of("config"))
    for group in ("method", "rollout", "data", "trainer"):
        keys = [f"  {group}.{key}" for key in config[group] if key != "_target_"]
        assert [key for key in keys if f"{key}=" not in text and f"{key}." not in text] == []


def test_json_schema_contains_every_method() -> None:
    schema = json.loads(json.dumps(json_schema(helper.groups(), root_of("config")), default=str))
    titles = [form["title"] for form in schema["properties"]["method"]["anyOf"]]
    assert titles == [f"method={name}" for name in options("method")]


def test_invalid_option_of_a_user_hides_no_other_key(tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("_target_: mine_lost.Mine\n")
    monkeypatch.chdir(tmp_path)
    assert main(["postrain", "help", "rollout.top_k"]) == 0
    output = capsys.readouterr()
    assert "rollout.top_k: an integer >= 0" in output.out
    assert "mine.yaml: there is no module mine_lost" in output.err


def test_markdown_lists_shared_keys_once_and_what_differs_per_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"a": {"joiner": "\n", "n": 1}, "b": {"joiner": "\n", "n": 1}, "c": {"joiner": "\n", "n": 2}}
    monkeypatch.setattr(helper, "groups", lambda: {"g": "About."})
    monkeypatch.setattr(helper, "options", lambda group: {name: Path(name) for name in options})
    monkeypatch.setattr(
        helper,
        "keys_of",
        lambda group, file: [
            Entry(f"g.{name}", Key(type(value), required=False), "Meaning.", value)
            for name, value in options[file.name].items()
        ],
    )
    assert helper.main(["help", "--markdown"]) == 0
    head = "| key | default | type | meaning |\n| --- | --- | --- | --- |\n"
    shared = "| g.joiner | \\n | text | Meaning. |\n| g.n | 1 | an integer | Meaning. |\n"
    other = "| g.n | 2 | an integer | Meaning. |\n"
    assert capsys.readouterr().out == f"## g\n\nAbout.\n\n{head}{shared}\n### g=c\n\n{head}{other}\n"
