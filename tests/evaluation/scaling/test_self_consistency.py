"""Self-consistency on scripted engines against worked numbers."""

from __future__ import annotations

import pytest

from tests.evaluation.scaling.scripted import (
    eval_model,
    measure,
    right_and_wrong,
    scores,
)


def test_self_consistency_accuracy_and_confidence_match_worked_example():
    both = right_and_wrong()
    # Right, wrong, right, right: of one 3/4; of two 1 and 1, since of a tie the first is taken; of four 1 with ¾.
    scripted = eval_model(lambda prompt: [both(prompt)[place] for place in (0, 1, 0, 0)])
    found = measure("self_consistency", samples=4)(scripted)
    assert scores(found.curves["self-consistency"]) == [3 / 4, 1, 1]
    assert found.metrics["confidence"].value == 3 / 4
    # Prompts of confidence ¾, all of them right.
    assert found.metrics["calibration_error"].value == pytest.approx(1 / 4)
    assert found.metrics["gain"].value == pytest.approx(1 / 4)
    assert len(set(found.records[0]["answers"])) == 2


def test_completions_without_an_answer_have_no_vote():
    found = measure("self_consistency", samples=2)(eval_model(lambda _: [" I do not know."]))
    assert (found.metrics["confidence"].value, found.metrics["answered"].value) == (0, 0)
    # Never sure and never right is not calibrated: there is nothing to be sure of.
    assert "calibration_error" not in found.metrics
    assert found.notes[-1] == "6 of 6 completions give no number and have no vote"
