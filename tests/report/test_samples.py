"""Completions of the same prompts, side by side."""

from __future__ import annotations

from postrain.report.samples import Answer, PromptSamples, Sample, first_and_last, last, responses, side_by_side


def sample(update: int, row: int, **scores: float) -> Sample:
    return Sample(update, row, f"prompt {row}", f"{update}", scores)


def test_before_and_after_are_the_first_and_the_last_evaluation() -> None:
    samples = [sample(0, 2, a=0.1), sample(0, 1), sample(5, 1), sample(9, 1, b=1.0), sample(9, 2, a=0.3), sample(9, 3)]
    groups = first_and_last(samples)
    assert [(tag, len(found)) for tag, found in groups] == [("before", 2), ("after", 3)]
    found = side_by_side(groups)
    assert [(one.row, [answer.text for answer in one.answers]) for one in found] == [(2, ["0", "9"]), (1, ["0", "9"])]
    assert [one.update for one in last(samples)] == [9, 9, 9]
    assert first_and_last([sample(4, 1)]) == [("sample", [sample(4, 1)])]
    assert first_and_last([]) == last([]) == []


def test_side_by_side_needs_the_least_number_of_groups() -> None:
    groups = [("a", [sample(0, 1), sample(0, 2)]), ("b", [sample(0, 2), sample(0, 3)]), ("c", [sample(0, 2)])]
    assert [one.row for one in side_by_side(groups)] == [2]
    assert [one.row for one in side_by_side(groups, least=1)] == [1, 2, 3]


def test_trend_is_relative_to_the_first_completion() -> None:
    first, second = Answer("before", "", {"a": 0.1, "b": 0.5}), Answer("after", "", {"a": 0.3, "b": 0.4, "c": 1.0})
    prompt = PromptSamples(0, "", (first, second))
    assert [prompt.trend(second, name) for name in "abc"] == ["up", "down", ""]
    assert prompt.trend(first, "a") == ""


def test_gold_scores_equal_to_the_reward_are_dropped() -> None:
    scores = {"gold/mood": 0.5, "reward/mood": 0.5, "gold/total": 0.4, "reward/total": 0.4}
    first, same = (Sample(update, 0, "prompt", "text", scores) for update in (0, 1))
    (one,) = side_by_side([("before", [first]), ("after", [same])])
    assert list(one.answers[0].scores) == ["reward/total", "reward/mood"]
    other = Sample(1, 0, "prompt", "text", scores | {"gold/mood": 0.6})
    (one,) = side_by_side([("before", [first]), ("after", [other])])
    assert len(one.answers[0].scores) == 4


def test_responses_have_the_known_totals() -> None:
    one = Sample(0, 0, "p", "c", {"reward/total": 0.5, "reward/mood": 1.0})
    assert responses([("a", [one])]) == [{"model": "a", "prompt": "p", "completion": "c", "reward": 0.5}]
