"""Handles Ctrl-C, SIGTERM, SIGHUP (closed terminal) and SIGUSR1 (Slurm's warning before the time limit).

The first signal finishes the update, saves and stops; the second stops immediately. Lightning instead raises after the
batch on SIGTERM, with exit code 0, and within a batch on Ctrl-C. It also calls its SIGTERM handler before existing
handlers, so ours is installed again when training starts. A signal that is ignored when the run starts (nohup) stays
ignored. Windows has only Ctrl-C.

submitit requeues a job of Slurm in its handler of SIGUSR2, which ends the process. It is called once the run is saved.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from lightning.pytorch import Callback, LightningModule, Trainer

from postrain.errors import Interrupted
from postrain.runs.method_protocol import method_of

REQUEUE = "SIGUSR2"
SIGNALS = [signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


class Interrupt(Callback):
    """A context manager around the whole run and a callback of its trainer.

    with Interrupt() as interrupt:
        Trainer(callbacks=[..., interrupt]).fit(...)
    """

    def __init__(self, stop_after: int | None = None) -> None:
        """`stop_after` is an update after which training stops as by SIGTERM, for replays (jobs/replay.py)."""
        self.stop_after = stop_after
        self.signal: signal.Signals | None = None
        """The signal received during training, if any; SIGTERM on all ranks if training stops for another reason."""
        self.received = False
        """Whether this process received a signal."""
        self._training = False
        self._update = 0
        self._prints = True
        self._original: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number: 130 after Ctrl-C, 143 after SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._original = {number: old for number, old in handlers.items() if old is not signal.SIG_IGN}
            number = getattr(signal, REQUEUE, None)
            if number is not None and callable(requeue := signal.getsignal(number)):
                self._original[number] = requeue
            self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._original.items():
            signal.signal(number, handler)
        self._original = {}
        if isinstance(error, Interrupted) and error.signal.name == REQUEUE:
            signal.raise_signal(error.signal)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._original:
            self._install()
        self._update = method_of(pl_module).counters.updates + 1
        self._prints = trainer.is_global_zero
        self._training = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        update = method_of(pl_module).counters.updates
        self._update = update + 1
        # All ranks stop after the same update if any of them received a signal.
        stops = self.signal is not None or update == self.stop_after
        if trainer.strategy.reduce_boolean_decision(stops, all=False):
            self.signal = self.signal or signal.SIGTERM
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._training = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._training = False

    def _install(self) -> None:
        for number in self._original:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            detach_from_terminal()
        self.received = True
        if self.signal is not None or not self._training:
            raise Interrupted(number)
        self.signal = signal.Signals(number)
        text = f"\nfinishing update {self._update}, then saving; press Ctrl-C again to stop immediately\n"
        if self._prints:
            # Not print, which the signal may have interrupted.
            os.write(2, text.encode())


def detach_from_terminal() -> None:
    """Discards further output if the terminal is closed; writing to it would raise before the run is saved."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if os.isatty(descriptor) or poll.poll(0):  # with no events registered, poll reports only errors and hang-ups
            os.dup2(null, descriptor)
    os.close(null)
