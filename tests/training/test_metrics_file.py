"""metrics.jsonl: valid JSON for all numbers, and equal with and without an interruption."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.jsonl import JsonLines
from postrain.runs.folder import RunFolder
from postrain.training.record_files import MetricsFile


def run(folder: RunFolder, trainer: Any, method: Any, until: int) -> None:
    """Trains from the method's current update; the metrics of an update are a function of its number."""
    callback = MetricsFile(folder)
    callback.on_train_start(trainer, method)
    while method.counters.updates < until:
        k = method.counters.updates + 1
        method.step(loss=1 / k, grad_norm=math.sqrt(k))
        callback.on_train_batch_end(trainer, method, None, None, k)


def without_time(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "time"} for record in folder.metrics.read()]


def test_record_holds_counters_and_metrics(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    run(folder, trainer, make_method(), until=2)
    record = folder.metrics.read()[1]
    assert record["time"] > 1e9
    # Two optimizer steps, 8 episodes and 100 tokens per update; after 2 updates 4, 16 and 200.
    assert without_time(folder)[1] == {
        "update": 2, "optimizer_steps": 4, "episodes": 16, "tokens": 200, "loss": 0.5, "grad_norm": math.sqrt(2),
    }  # fmt: skip


def test_metrics_before_the_first_update_are_record_0(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any]
) -> None:
    method = make_method()
    method.last_metrics = {"eval/loss": 3.0}
    run(folder, trainer, method, until=1)
    assert [record["update"] for record in folder.metrics.read()] == [0, 1]
    assert folder.metrics.read()[0]["eval/loss"] == 3.0


def test_non_finite_numbers_are_written_as_strings(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any]
) -> None:
    method = make_method()
    method.step(loss=math.nan, grad_norm=math.inf, margin=-math.inf)
    MetricsFile(folder).write(trainer, method)

    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(folder.metrics.path.read_text(), parse_constant=refuse)
    assert (record["loss"], record["grad_norm"], record["margin"]) == ("nan", "inf", "-inf")


@pytest.mark.parametrize("seed", range(20))
def test_resumed_file_equals_an_uninterrupted_one(
    folder: RunFolder, trainer: Any, make_method: Callable[..., Any], seed: int, tmp_path: Any
) -> None:
    rng = random.Random(seed)
    total, killed_at = 12, rng.randint(1, 12)
    checkpoint = rng.randint(0, killed_at)
    whole = RunFolder.create(tmp_path, "ppo", "whole", "12345678")
    run(whole, trainer, make_method(), until=total)

    run(folder, trainer, make_method(), until=killed_at)
    with folder.metrics.path.open("ab") as file:  # The process was killed in the middle of a line.
        file.write(b'{"update": 99, "loss": 0.1234'[: rng.randint(0, 29)])
    run(folder, trainer, make_method(done=checkpoint), until=total)
    assert without_time(folder) == without_time(whole)
    assert folder.metrics.path.read_bytes().count(b"\n") == total


def test_only_the_first_rank_writes(folder: RunFolder, other_rank: Any, make_method: Callable[..., Any]) -> None:
    run(folder, other_rank, make_method(), until=2)
    assert not folder.metrics.path.exists()


def test_loggers_get_the_update_as_step(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    class Recorder:
        def __init__(self) -> None:
            self.calls: list[tuple[dict[str, float], int]] = []

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.calls.append((dict(metrics), step))

    trainer.loggers = [Recorder()]
    run(folder, trainer, make_method(), until=2)
    # Not the optimizer steps, of which there are two per update.
    assert [step for _, step in trainer.loggers[0].calls] == [1, 2]
    assert trainer.loggers[0].calls[0][0] == {"loss": 1.0, "grad_norm": 1.0}


def test_full_disk_is_a_one_line_error(folder: RunFolder, trainer: Any, make_method: Callable[..., Any]) -> None:
    callback = MetricsFile(folder)
    folder.metrics.path.symlink_to("/dev/full")  # Every write fails with "no space left".
    method = make_method()
    method.step(loss=1.0)
    with pytest.raises(ConfigError, match=r"metrics\.jsonl: No space left on device; free some space") as caught:
        callback.write(trainer, method)
    assert "\n" not in str(caught.value)


def test_damaged_lines_are_counted_and_skipped(tmp_path: Any) -> None:
    lines = JsonLines(tmp_path / "x.jsonl")
    lines.path.write_bytes(b'{"update": 1}\n{"upd\n[1]\n\xff\xfe\n{"update": 2}\n')
    assert [record["update"] for record in lines.read()] == [1, 2]
    assert lines.examine()[1] == 3
