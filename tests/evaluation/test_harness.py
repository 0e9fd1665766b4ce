"""lm-evaluation-harness: parsing of its results; the package is optional and not imported."""

from __future__ import annotations

import math

import pytest

from postrain.evaluation.harness import parse_results

RETURNED = {
    "results": {
        "mine": {
            "alias": "mine",
            "acc,none": 0.75,
            "acc_stderr,none": 0.25,
            "exact_match,strict": 0.5,
            "exact_match_stderr,strict": 0.1,
            "f1,none": 0.2,
            "f1_stderr,none": "N/A",
        },
        "all": {"alias": "all", "acc,none": 0.6, "acc_stderr,none": 0.05},
        "some": {"alias": " - some", " ": " "},
    },
    "group_subtasks": {"all": ["some", "other"], "some": ["mine", "other"], "mine": [], "other": []},
    "n-samples": {"mine": {"original": 9, "effective": 4}, "other": {"original": 3, "effective": 3}},
    "samples": {
        "mine": [
            {"doc_id": at, "target": 0, "filtered_resps": [at], "acc": acc, "arguments": [[f"{at} + 1 =", " 1"]]}
            for at, acc in enumerate([1.0, 1.0, 0.0, 1.0])
        ]
    },
}


def test_intervals_come_from_items_else_from_the_standard_error() -> None:
    found = parse_results(RETURNED)
    assert found.example == "0 + 1 ="
    assert set(found.metrics) == {"mine/acc", "mine/exact_match,strict", "mine/f1", "all/acc"}
    assert found.metrics["mine/acc"].high < 1  # Wilson's interval of 3 in 4
    assert found.metrics["mine/exact_match,strict"].high == pytest.approx(0.5 + 1.959964 * 0.1)
    assert math.isinf(found.metrics["mine/f1"].high)
    assert found.records[2] == {"row": "mine 2", "target": "0", "answer": "[2]", "mine/acc": 0.0}


def test_group_counts_the_items_of_each_task_once() -> None:
    found = parse_results(RETURNED).metrics["all/acc"]
    assert (found.value, found.n) == (0.6, 4 + 3)
    assert found.high == pytest.approx(0.6 + 1.959964 * 0.05)
