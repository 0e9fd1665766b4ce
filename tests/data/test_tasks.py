"""reasoning-gym tasks as rows, with a fake package: reproducible rows, disjoint splits, errors of bad settings."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from postrain.config.tree import instantiate
from postrain.data.module import DataModule
from postrain.data.tasks import COLUMN, REFUSED, ReasoningGym
from postrain.errors import ConfigError
from tests import fake_reasoning_gym
from tests.data.helpers import load_rows
from tests.training_runs import CONF, composed

NANO = CONF.parent / "postrain" / "assets" / "nano"


@pytest.fixture(autouse=True)
def _fake_gym(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_reasoning_gym.install(monkeypatch)


def source(task: str = "adding", **changes: Any) -> ReasoningGym:
    given = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "reasoning_gym.yaml"))
    assert isinstance(given, dict)
    return instantiate({**given["source"], "task": task, "count": 40, **changes})


def test_task_rows_have_prompt_answer_and_scorer_fields() -> None:
    train, held_out = load_rows(source())
    assert (len(train), len(held_out)) == (40, 6)
    row = train[0]
    one, other = (int(word) for word in row["prompt"].removesuffix(" = ?").split(" + "))
    assert row["answer"] == str(one + other)
    entry = {"question": row["prompt"], "answer": row["answer"], "metadata": {"range": [0, 99]}}
    assert row[COLUMN] == {"task": "adding", "settings": {}, "entry": entry}
    # Rows survive a round trip through a JSON file.
    assert json.loads(json.dumps(row)) == row


@pytest.mark.parametrize("task", ["adding", "ambient"])
def test_task_rows_depend_on_seed_and_index_only(task: str) -> None:
    train, held_out = load_rows(source(task))
    random.seed(1)
    assert load_rows(source(task)) == (train, held_out)
    assert load_rows(source(task, count=10))[0] == train[:10]
    assert load_rows(source(task), eval_rows=2)[1] == held_out[:2]
    assert load_rows(source(task, seed=1))[0] != train


def test_loading_leaves_the_global_generators_unchanged() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = random.random(), np.random.random()
    random.seed(3)
    np.random.seed(3)
    load_rows(source("ambient"))
    assert (random.random(), np.random.random()) == expected


def test_train_and_eval_prompts_of_a_small_task_are_disjoint() -> None:
    # 7 · 7 = 49 different sums, each drawn many times
    train, held_out = load_rows(source(settings={"largest": 6}, count=400), eval_rows=40)
    train_prompts, eval_prompts = {row["prompt"] for row in train}, [row["prompt"] for row in held_out]
    assert not train_prompts & set(eval_prompts)
    assert len(set(eval_prompts)) == len(eval_prompts) > 0


def test_task_settings_are_passed_to_the_scorer() -> None:
    train, _ = load_rows(source(settings={"largest": 20}))
    assert all(int(row["answer"]) <= 40 for row in train)
    assert train[0][COLUMN]["settings"] == {"largest": 20}


def test_instruction_is_appended_to_the_prompt_only() -> None:
    plain, instructed = load_rows(source())[0][0], load_rows(source(instruction=" Only the number."))[0][0]
    assert instructed["prompt"] == plain["prompt"] + " Only the number."
    assert instructed[COLUMN] == plain[COLUMN]


def test_demonstrations_follow_the_answer_format() -> None:
    row = load_rows(source(kind="demonstrations", reply="<answer>{answer}</answer>"))[0][0]
    assert row["completion"] == f"<answer>{row['answer']}</answer>"
    with pytest.raises(ConfigError, match=r"data.source.kind=demonstrations: open states no answers"):
        load_rows(source("open", kind="demonstrations"))
    with pytest.raises(ConfigError, match=r"data.source.reply='42': expected a text with \{answer\} in it"):
        load_rows(source(reply="42"))


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("ading", {}, r"data.source.task=ading: reasoning-gym has no such task; did you mean adding\?"),
        ("coin_flip", {}, r"data.source.task=coin_flip: left out, since its scorer rewards the answer 0"),
        ("adding", {"settings": {"bigest": 3}}, r"data.source.settings.bigest: adding has no such .* are largest$"),
        (
            "adding",
            {"settings": {"largest": 0}},
            r"data.source.settings: adding refuses them: largest must be positive",
        ),
        ("adding", {"settings": {"largest": "x"}}, r"data.source.settings: adding refuses them: "),
        ("adding", {"settings": {"seed": 1}}, r"data.source.settings.seed: adding has no such setting"),
        ("adding", {"settings": {"largest": 1}, "count": 4}, r"too few different prompts"),
    ],
)
def test_invalid_task_settings_are_a_one_line_error(task: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_rows(source(task, **changes))
    assert "\n" not in str(caught.value)


def test_task_that_depends_on_the_hash_seed_requires_a_fixed_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.raises(ConfigError, match=r"ransom_note: .* set the environment variable PYTHONHASHSEED=0"):
        load_rows(source("ransom_note"))
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    assert len(load_rows(source("ransom_note"))[0]) == 40


def test_missing_extra_names_its_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r'reasoning_gym is not installed; run pip install "postrain\[tasks\]"'):
        load_rows(source())


def test_every_refused_task_has_a_reason() -> None:
    assert all(len(reason) > 10 for reason in REFUSED.values())


@pytest.mark.parametrize(("kind", "record"), [("prompts", "Prompt"), ("demonstrations", "Demonstration")])
def test_tasks_prepare_as_prompts_and_demonstrations(kind: str, record: str) -> None:
    overrides = ["data=reasoning_gym", "data.source.task=adding", "data.source.count=30", "data.eval_rows=5"]
    config = composed(["method=ppo", *overrides, "++data.source.settings.largest=50", f"data.source.kind={kind}"])
    data: DataModule = instantiate(config["data"])
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    data.prepare(kind=record, tokenizer=tokenizer, context=256, batch_size=4, updates=2, seed=0, completion_tokens=8)
    assert len(data.train) == 30
    assert {"answer", COLUMN} <= set(data.prompt_columns)
    first = data.audit.to_dict()["fingerprint"]
    data.prepare(kind=record, tokenizer=tokenizer, context=256, batch_size=4, updates=2, seed=0, completion_tokens=8)
    assert data.audit.to_dict()["fingerprint"] == first
