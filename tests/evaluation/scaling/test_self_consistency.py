"""Self-consistency on scripted engines against worked numbers."""

from __future__ import annotations

import pytest

from tests.evaluation.scaling.scripted import (
    correct_and_wrong,
    eval_model,
    make_task,
    scores,
)


def test_self_consistency_accuracy_and_confidence_match_worked_example():
    both = correct_and_wrong()
    # Correct, wrong, correct, correct. n = 1: 3/4; n = 2: 1 and 1, since the first wins a tie; n = 4: 1 with share ¾.
    scripted = eval_model(lambda prompt: [both(prompt)[index] for index in (0, 1, 0, 0)])
    found = make_task("self_consistency", samples=4)(scripted)
    assert scores(found.curves["self-consistency"]) == [3 / 4, 1, 1]
    assert found.metrics["confidence"].value == 3 / 4
    # Every prompt has confidence ¾ and a correct answer.
    assert found.metrics["calibration_error"].value == pytest.approx(1 / 4)
    assert found.metrics["gain"].value == pytest.approx(1 / 4)
    assert len(set(found.records[0]["answers"])) == 2


def test_completions_without_an_answer_have_no_vote():
    found = make_task("self_consistency", samples=2)(eval_model(lambda _: [" I do not know."]))
    assert (found.metrics["confidence"].value, found.metrics["answered"].value) == (0, 0)
    # Without an answer there is no confidence to calibrate.
    assert "calibration_error" not in found.metrics
    assert found.notes[-1] == "6 of 6 completions give no number and have no vote"
