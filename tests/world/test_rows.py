"""Streams of rows: reproducible in any process, disjoint splits, columns, Bradley-Terry frequencies."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter

import pytest

from postrain.errors import ConfigError
from postrain.world import rows, score, sums
from postrain.world.items import EVAL_SHARE, generator, split_of
from postrain.world.rows import END_OF_TEXT, MAKERS, TASKS_BY_KIND, Kind, Task

COMBINATIONS: list[tuple[Kind, Task]] = [(kind, task) for kind, tasks in TASKS_BY_KIND.items() for task in tasks]
COLUMNS: dict[Kind, set[str]] = {
    "text": {"text"},
    "demonstrations": {"prompt", "completion", "category", "gold"},
    "preferences": {"prompt", "chosen", "rejected", "gold_margin", "category", "gold"},
    "unpaired_preferences": {"prompt", "completion", "label", "category", "gold"},
    "steps": {"prompt", "steps", "labels", "category", "gold"},
}


def identity(row: dict) -> str:
    return row["text"] if "text" in row else row["prompt"]


@pytest.mark.parametrize(("kind", "task"), COMBINATIONS)
def test_same_seed_gives_the_same_stream_of_rows(kind: Kind, task: Task) -> None:
    first = rows(kind, task=task, count=20, seed=3, split="train")
    assert rows(kind, task=task, count=30, seed=3, split="train")[:20] == first
    assert rows(kind, task=task, count=20, seed=4, split="train") != first
    assert json.loads(json.dumps(first)) == first


@pytest.mark.parametrize(("kind", "task"), COMBINATIONS)
def test_train_and_eval_rows_are_disjoint(kind: Kind, task: Task) -> None:
    train = {identity(row) for row in rows(kind, task=task, count=400, seed=1, split="train")}
    held_out = {identity(row) for row in rows(kind, task=task, count=200, seed=1, split="eval")}
    assert not train & held_out


@pytest.mark.parametrize("task", MAKERS)
def test_one_tenth_of_the_contents_is_in_the_eval_split(task: Task) -> None:
    rng = generator("paraphrases", task)
    items = [MAKERS[task](rng) for _ in range(1500)]
    shares = Counter(split_of(content) for content in {item.content for item in items})
    # Expected share 1/10 of the different contents; five standard deviations for the smallest set.
    total = shares.total()
    assert abs(shares["eval"] - total / EVAL_SHARE) < 5 * math.sqrt(total * 0.1 * 0.9)


def test_eval_sums_are_absent_from_train_text_and_instructions() -> None:
    held_out = {
        row["prompt"].removesuffix(" = ?") for row in rows("prompts", task="sums", count=300, seed=0, split="eval")
    }
    train = {row["text"].split(" = ?")[0] for row in rows("text", task="sums", count=3000, seed=0, split="train")}
    prompts = {row["prompt"] for row in rows("prompts", task="instructions", count=1500, seed=0, split="train")}
    assert not held_out & train
    assert not {f"What is {sum_}?" for sum_ in held_out} & prompts


def test_long_sums_and_word_problems_have_the_answers_of_sums() -> None:
    longest = max(row["prompt"].count(" ") for row in rows("prompts", task="sums", count=300, seed=0, split="train"))
    for row in rows("prompts", task="long_sums", count=50, seed=0, split="train"):
        terms = sums.terms_of(row["prompt"])
        assert (len(terms), sum(terms)) == (row["gold"]["steps"]["count"] + 1, int(row["answer"]))
        assert row["prompt"].count(" ") > longest
    for row in rows("prompts", task="word_problems", count=50, seed=0, split="train"):
        has, *changes = re.findall(r"(has|finds|loses) (\d+)", row["prompt"])
        signs = {"finds": 1, "loses": -1}
        assert int(row["answer"]) == int(has[1]) + sum(signs[verb] * int(number) for verb, number in changes)


@pytest.mark.parametrize("kind", COLUMNS)
def test_rows_have_the_columns_of_their_kind(kind: Kind) -> None:
    for task in TASKS_BY_KIND[kind]:
        assert all(set(row) == COLUMNS[kind] for row in rows(kind, task=task, count=10, seed=0, split="train"))


def test_pages_are_mixed_documents_in_order() -> None:
    pages = rows("text", task="pages", count=20, seed=2, split="train")
    documents = [document for page in pages for document in page["text"].split(END_OF_TEXT)]
    assert documents == [row["text"] for row in rows("text", task="mixed", count=len(documents), seed=2, split="train")]


def test_rows_do_not_depend_on_the_hash_seed() -> None:
    command = [
        sys.executable,
        "-m",
        "postrain.world",
        "--kind",
        "preferences",
        "--task",
        "instructions",
        "--count",
        "6",
    ]
    printed = {
        subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    here = [json.dumps(row) for row in rows("preferences", task="instructions", count=6, seed=0, split="train")]
    assert printed == {"\n".join(here) + "\n"}


@pytest.mark.parametrize("task", TASKS_BY_KIND["preferences"])
@pytest.mark.parametrize("noise", [0.1, 1.0])
def test_preferences_follow_bradley_terry(task: Task, noise: float) -> None:
    found = rows("preferences", task=task, count=1500, seed=5, split="train", noise=noise)
    # Given a pair, P(better one chosen) = σ(|Δ| / noise): the count is a sum of independent draws.
    probabilities = [1 / (1 + math.exp(-abs(row["gold_margin"]) / noise)) for row in found]
    agreed = sum(row["gold_margin"] > 0 for row in found)
    deviation = math.sqrt(sum(p * (1 - p) for p in probabilities))
    assert abs(agreed - sum(probabilities)) < 4 * deviation


def test_gold_margin_is_the_difference_of_gold_totals() -> None:
    for row in rows("preferences", task="instructions", count=100, seed=6, split="eval"):
        chosen, rejected = (score(row["prompt"], row[side], row["gold"])["total"] for side in ("chosen", "rejected"))
        assert row["gold_margin"] == pytest.approx(chosen - rejected, abs=1e-6)
        assert row["chosen"] != row["rejected"]


def test_step_labels_are_true_up_to_the_first_slip() -> None:
    found = rows("steps", task="sums", count=200, seed=7, split="train")
    for row in found:
        whole = score(row["prompt"], " ".join(row["steps"]), row["gold"])
        assert whole["correct"] == float(all(row["labels"]))
        assert row["labels"] == sorted(row["labels"], reverse=True)
        assert len(row["labels"]) == len(row["steps"])
    # 0.4 are right by construction, plus the right guesses among the rest: 0.4 + 0.6 · 6/23 · 1/3 = 0.45 of all.
    assert 0.35 < sum(all(row["labels"]) for row in found) / len(found) < 0.65


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "steps", "task": "stories"}, "sums"),
        (
            {"kind": "demonstrations", "task": "mixed"},
            "stories, sums, long_sums, word_problems, instructions, facts",
        ),
        ({"kind": "chat"}, "text, demonstrations"),
        ({"split": "test"}, "train or eval"),
        ({"count": -1}, "0 or more"),
        ({"noise": 0.0}, "a finite number above 0"),
        ({"noise": math.nan}, "a finite number above 0"),
    ],
)
def test_invalid_choice_is_a_one_line_error(change: dict, message: str) -> None:
    chosen = {"kind": "preferences", "task": "sums", "count": 1, "seed": 0, "split": "train", "noise": 0.1} | change
    with pytest.raises(ConfigError, match=message) as error:
        rows(chosen.pop("kind"), **chosen)
    assert "\n" not in str(error.value)
