"""Runs that a signal ends after the first update resume bit for bit.

tests/test_methods.py resumes every method from a periodic checkpoint; the one of a signal is the same, so one method of
each kind is enough here.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from postrain.runs.folder import RunFolder
from postrain.runs.interrupt import Interrupted
from postrain.runs.method_protocol import method_of
from tests.training_runs import added_callback, final_state, records, resumed, same, shallow, small_run

METHODS = {"grpo": signal.SIGTERM, "ppo": signal.SIGUSR1, "sft": signal.SIGINT}
"""All signals: tests/training/test_interrupt.py."""


class Sender(Callback):
    """Sends a signal to its own process at the start of the second update."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if method_of(pl_module).counters.updates == 1:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_interrupted_by_a_signal_resumes_bit_for_bit(method: str, tmp_path: Path) -> None:
    number = METHODS[method]
    words = (*shallow(method), "trainer.checkpoint_every=100")
    whole = small_run(tmp_path / "whole", *words)
    with added_callback(Sender(number)), pytest.raises(Interrupted) as stop:
        small_run(tmp_path / "stopped", *words)
    assert stop.value.code == 128 + number
    (path,) = (tmp_path / "stopped").glob("*/*/*")
    assert [item.name for item in (path / "checkpoints").iterdir()] == ["update=000002.ckpt"]
    finished = resumed(RunFolder(path))
    assert records(finished) == records(whole)
    assert same(final_state(finished)["state_dict"], final_state(whole)["state_dict"])
