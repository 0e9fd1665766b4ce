"""reasoning_gym.py: scorers on extracted answers, and answers that they never receive."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from postrain.config.tree import instantiate
from postrain.data.tasks import COLUMN
from postrain.errors import ConfigError
from postrain.rewards import reasoning_gym
from postrain.rewards.reasoning_gym import ReasoningGymScore, extract_answers
from tests import fake_reasoning_gym
from tests.rewards.test_configs import CONF


@pytest.fixture(autouse=True)
def _gym(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_reasoning_gym.install(monkeypatch)
    reasoning_gym._scorer.cache_clear()


def reward(**changes: Any) -> ReasoningGymScore:
    given = OmegaConf.merge(OmegaConf.load(CONF / "reasoning_gym.yaml"), changes)
    return instantiate(OmegaConf.to_container(given))


def row(task: str, answer: str | None = "12", **settings: Any) -> dict[str, Any]:
    entry = {"question": "5 + 7 = ?", "answer": answer, "metadata": {}}
    return {COLUMN: {"task": task, "settings": settings, "entry": entry}}


def scores(task: str, *completions: str, extract: str = "number", **about: Any) -> list[float]:
    found = reward(extract=extract)(
        ["5 + 7 = ?"] * len(completions), completions, [row(task, **about)] * len(completions)
    )
    assert found.parts == {"right": tuple(found.total_B.tolist())}
    return found.total_B.tolist()


def test_only_full_marks_count() -> None:
    # The task's own score of "= 12" is 2 / 4, and of "it is 12." 2 / 9: the extracted answer is scored.
    assert scores("adding", "It is 12.", "5 + 7 = 12", "13", "112", "none") == [1, 1, 0, 0, 0]
    assert scores("adding", "12", "= 12", extract="whole") == [1, 0]


@pytest.mark.parametrize(
    ("how", "text", "answers"),
    [
        ("number", "First 3, then -4.50.", ("-4.50", "-4.5")),
        ("number", "1,200", ("1200", "1200")),
        ("number", "none", ()),
        ("tags", "<answer>a</answer> or <answer> b </answer>", ("b",)),
        ("tags", "b", ()),
        ("line", "Because.\n\n  True. \n", ("True.", "True")),
        ("whole", " a\nb ", ("a\nb", "a\nb")),
        ("line", " ", ()),
    ],
)
def test_extract_selects_the_part_with_the_answer(how: Any, text: str, answers: tuple[str, ...]) -> None:
    assert extract_answers(text, how) == answers


def test_scorer_error_scores_zero() -> None:
    assert scores("raising", "twelve", "12", "", extract="whole") == [0, 1, 0]


@pytest.mark.parametrize(
    "completion",
    ["print(3) or 12", "3**1 + 9", "9* *9**9", "len([1]*999999999999) or 12", "__import__('os').abort()", "(" * 9999],
)
def test_only_arithmetic_is_evaluated(completion: str) -> None:
    assert scores("countdown", completion, "(1 + 3) * 3", "6 + 6", extract="whole") == [0, 1, 1]


def test_scorer_uses_the_settings_of_the_row() -> None:
    assert scores("open", "60", answer=None) == [1]
    assert scores("open", "60", answer=None, largest=50) == [0]


def test_rows_without_the_task_column_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"needs the column reasoning_gym, and the prompts have only answer; use data="
    ):
        reward()(["p"], ["12"], [{"answer": "12"}])


def test_to_device_is_a_no_op() -> None:
    reward().to("cpu")
