"""rubric.py: weighted criteria judged one by one, by a server and by a local model."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.rewards.base import nan_to_none
from postrain.rewards.rubric import Item, LocalRubric, Rubric, parse_verdict, rubric_score
from tests.rewards.judge_server import Reply, judge_config, judge_server, question_of
from tests.rewards.test_reward_model import NANO

CRITERIA = {"short": "It is short.", "true": "It is true.", "rude": "It is rude."}
WEIGHTS = {"short": 1.0, "true": 2.0, "rude": -1.0}


def rubric(url: str = "http://127.0.0.1:9/v1", **changes: Any) -> Rubric:
    settings = {"criteria": CRITERIA, "weights": WEIGHTS, **changes}
    # Mappings replace those of the YAML instead of being merged with them.
    return instantiate({**judge_config("rubric", url), **settings})


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        # (1·1 + 2·1 + 1 − 1·0) / 4
        ((1.0, 1.0, 0.0), 1.0),
        ((0.0, 0.0, 1.0), 0.0),
        # (1·1 + 2·0 + 1 − 1·1) / 4
        ((1.0, 0.0, 1.0), 0.25),
        # Without `true`: (1·1 + 1 − 1·0) / 2
        ((1.0, None, 0.0), 1.0),
        # A probability: (1·0 + 2·0.5 + 1 − 1·0.5) / 4
        ((0.0, 0.5, 0.5), 0.375),
        ((None, None, None), None),
    ],
)
def test_rubric_score_is_normalised_with_pitfalls(verdicts: tuple[float | None, ...], expected: float | None) -> None:
    items = [Item("", weight, name) for name, weight in WEIGHTS.items()]
    assert rubric_score(list(zip(items, verdicts, strict=True))) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"met": true}', 1.0),
        ('{"met": 0}', 0.0),
        ('It is long. {"met": false}', 0.0),
        ('{"met": false, "reason": "the answer is true"}', 0.0),
        ('{"met": "yes", "reason": "the verdict: no"}', 1.0),
        ("**Verdict:** No", 0.0),
        ("Yes, it does.", 1.0),
        ("True.", 1.0),
        ("I cannot tell, yes or no.", None),
        ("", None),
    ],
)
def test_verdict_is_parsed_from_typical_answers(answer: str, expected: float | None) -> None:
    assert parse_verdict(answer) == expected


def test_server_judges_each_criterion_and_missing_verdicts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def reply(body: dict[str, Any], index: int) -> Reply:
        question = question_of(body)
        if CRITERIA["true"] in question and "odd" in question:
            return Reply("Hmm.")
        return Reply(json.dumps({"met": CRITERIA["short"] in question}))

    with judge_server(reply) as server:
        found = rubric(server.url)(["Hi."] * 2, ["fine", "odd"], [{}] * 2)
    # fine: (1 + 0 + 1) / 4; odd, without `true`: (1 + 1) / 2
    assert found.total_B.tolist() == [0.5, 1.0]
    assert found.parts == {
        "short": (1.0, 1.0),
        "true": (0.0, None),
        "rude": (0.0, 0.0),
        "missing_verdicts": (0.0, pytest.approx(1 / 3)),
    }
    # Three questions for each completion, and one of them again.
    assert len(server.bodies) == 7
    assert "1 of 6 not scored" in capsys.readouterr().err


ROWS = (
    [{"criterion": "A", "points": 3, "tags": ["axis:accuracy", "x"]}, {"criterion": "B", "points": -1, "tags": "y:b"}],
    json.dumps([{"description": "C", "weight": 2, "title": "Long title", "name": "c"}, "D"]),
    None,
    [],
)


def test_rubric_of_a_row_precedes_the_configured_one() -> None:
    reward = rubric()
    found = [reward.items_of({"rubric": given}, "row 0") for given in ROWS]
    assert found[0] == (Item("A", 3.0, "accuracy"), Item("B", -1.0, "b"))
    assert found[1] == (Item("C", 2.0, "c"), Item("D"))
    assert [item.name for item in found[2]] == ["short", "true", "rude"]
    assert found[3] == ()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("be nice", r"rubric of prompt \'Hi.\': expected a list of criteria such as .*, got \'be nice\'"),
        ([{"points": 1}], r"rubric of prompt 'Hi.': expected text under criterion or description, got {'points': 1}"),
        ([{"criterion": "A", "points": 0}], r"rubric of prompt 'Hi.': expected a weight other than 0, .* got 0"),
        ([{"criterion": "A", "points": "5"}], r"expected a weight other than 0, .* got '5'"),
    ],
)
def test_unreadable_rubric_is_a_one_line_error(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rubric()(["Hi."], ["x"], [{"rubric": given}])


def test_missing_criteria_and_unknown_weights_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"reward.weights.polite: reward.criteria has no such name \(it has short"):
        rubric(weights={"polite": 1.0})
    with pytest.raises(ConfigError, match=r"reward.weights.short: expected a weight other than 0"):
        rubric(weights={"short": 0.0})
    with pytest.raises(ConfigError, match=r"reward.criteria: expected criteria, or data with a column rubric"):
        rubric(criteria={}, weights={})(["Hi."], ["x"], [{}])


def test_local_model_judges_in_both_orders() -> None:
    reward = LocalRubric(path=str(NANO), criteria=CRITERIA, weights=WEIGHTS)
    prompts, completions = ["Say hello.", "What is 3 + 4?"], ["Hello, dear friend!", "7"]
    found = reward(prompts, completions, [{}, {"rubric": []}])
    verdicts = [found.parts[name][0] or 0.0 for name in CRITERIA]
    assert all(0 < verdict < 1 for verdict in verdicts)
    # (1·short + 2·true + 1 − 1·rude) / 4
    assert float(found.total_B[0]) == pytest.approx((verdicts[0] + 2 * verdicts[1] + 1 - verdicts[2]) / 4)
    # A row with an empty rubric is unscorable.
    assert nan_to_none(found.total_B)[1] is None
    # The answer to a question without its letters in one order: P(A) with "A: Yes", 1 − P(A) with "A: No".
    one = reward.verdicts([(prompts[0], completions[0], CRITERIA["short"])])
    torch.testing.assert_close(one, torch.tensor([verdicts[0]]), atol=1e-6, rtol=0)
