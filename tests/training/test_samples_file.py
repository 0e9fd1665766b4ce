"""samples.jsonl and the table for trackers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from postrain.runs.folder import RunFolder
from postrain.training.record_files import Sample, SamplesFile, table

A = Sample(row=7, prompt="Once\nthere", completion="was <b>", rewards={"mood": 0.5, "total": 0.4}, gold={"mood": 1.0})
B = Sample(row=9, prompt="é", completion="", rewards={"mood": None}, gold={})


def test_each_sample_is_one_line(folder: RunFolder, trainer: Any) -> None:
    SamplesFile(folder).write(trainer, 3, [A, B])
    first, second = folder.samples.read()
    assert first == {
        "update": 3, "row": 7, "prompt": "Once\nthere", "completion": "was <b>",
        "rewards": {"mood": 0.5, "total": 0.4}, "gold": {"mood": 1.0},
    }  # fmt: skip
    assert (second["prompt"], second["rewards"]) == ("é", {"mood": None})


def test_resumed_run_writes_repeated_samples_once(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any]
) -> None:
    samples = SamplesFile(folder)
    samples.on_train_start(trainer, make_method())
    samples.write(trainer, 0, [A])
    samples.write(trainer, 5, [A])
    samples.on_train_start(trainer, make_method(done=4))  # The checkpoint is of update 4.
    samples.write(trainer, 5, [B])
    assert [(record["update"], record["row"]) for record in folder.samples.read()] == [(0, 7), (5, 9)]


def test_other_ranks_write_nothing(folder: RunFolder, other_rank: Any) -> None:
    SamplesFile(folder).write(other_rank, 3, [A])
    assert not folder.samples.path.exists()


def test_table_has_a_column_per_reward_component() -> None:
    columns, rows = table(3, [A, B])
    assert columns == ["update", "row", "prompt", "completion", "reward/mood", "reward/total", "gold/mood"]
    assert rows == [[3, 7, "Once\nthere", "was <b>", 0.5, 0.4, 1.0], [3, 9, "é", "", None, None, None]]
