"""Signals: the first stops after the update, the second immediately; outside training the first stops immediately."""

from __future__ import annotations

import os
import pty
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from postrain.runs.interrupt import Interrupt, Interrupted, detach_from_terminal


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_first_signal_finishes_the_update(
    trainer: Any, make_method: Callable[..., Any], capfd: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    method = make_method(done=6)
    with Interrupt() as interrupt:
        interrupt.on_train_start(trainer, method)
        os.kill(os.getpid(), number)
        assert not trainer.should_stop
        method.step()
        interrupt.on_train_batch_end(trainer, method, None, None, 0)
    assert trainer.should_stop
    assert (interrupt.signal, interrupt.exit_code) == (number, code)
    assert "finishing update 7, then saving; press Ctrl-C again to stop immediately" in capfd.readouterr().err


def test_second_signal_stops_immediately(trainer: Any, make_method: Callable[..., Any]) -> None:
    with Interrupt() as interrupt:
        interrupt.on_train_start(trainer, make_method())
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signal.SIGINT)
    assert caught.value.code == 130


def test_first_signal_outside_training_stops_immediately(trainer: Any, make_method: Callable[..., Any]) -> None:
    with Interrupt() as interrupt:
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)
        interrupt.on_train_start(trainer, make_method())
        interrupt.on_train_end(trainer, make_method())
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGTERM)


def test_every_rank_stops_when_another_received_a_signal(trainer: Any, make_method: Callable[..., Any]) -> None:
    trainer.strategy.others = True
    with Interrupt() as interrupt:
        interrupt.on_train_batch_end(trainer, make_method(), None, None, 0)
    assert trainer.should_stop


def test_exit_restores_signal_handlers() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interrupt():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_printing_after_the_terminal_closed_does_not_raise() -> None:
    """In a child process whose terminal closes, as with `ssh`."""
    master, slave = pty.openpty()
    child = os.fork()
    if not child:
        os.dup2(slave, 1)
        os.dup2(slave, 2)
        os.close(master)
        detach_from_terminal()
        os._exit(0 if os.write(1, b"x") == 1 and os.write(2, b"x") == 1 else 1)
    os.close(slave)
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Killed(LightningModule):
    """Sends itself SIGTERM in its third update."""

    def __init__(self, counters: Any) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.counters, self.last_metrics, self.headline, self.updates = counters, {}, (), 10

    def training_step(self, batch: Any, batch_idx: int) -> None:
        if self.counters.updates == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        self.counters.updates += 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_sigterm_ends_a_lightning_fit_after_the_update(make_method: Callable[..., Any]) -> None:
    module = Killed(make_method().counters)
    with Interrupt() as interrupt:
        trainer = Trainer(
            accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, callbacks=[interrupt],
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, DataLoader(TensorDataset(torch.zeros(10, 1))))
    # No exception, the current update is the last one, and Lightning's handlers were not called.
    assert module.counters.updates == 3
    assert interrupt.exit_code == 143
    assert not trainer.received_sigterm
