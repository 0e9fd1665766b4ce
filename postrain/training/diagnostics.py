"""Applies the diagnostic rules after every update. A rule reports once; the report shows its paragraph too.

The rules are in diagnostic_rules.py. Must follow MetricsFile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.padding import Padding

from postrain.errors import ConfigError
from postrain.jsonl import number, update_of
from postrain.runs.folder import RunFolder, writing
from postrain.runs.method_protocol import method_of
from postrain.training.diagnostic_rules import RULES, Rule
from postrain.training.record_files import DISK_FULL_REMEDY

FIRST, RECENT = 10, 200


class Diagnostics(Callback):
    """Applies each rule to the metrics until it has reported; writes diagnostics.jsonl."""

    def __init__(self, folder: RunFolder, rules: Sequence[Rule] = RULES, console: Console | None = None) -> None:
        self._folder = folder
        self._rules = rules
        self._console = console or Console(highlight=False)
        self._history: list[dict[str, float]] = []
        self._reported: set[str] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the metrics and reports of a resumed run."""
        updates = method_of(pl_module).counters.updates
        if trainer.is_global_zero:
            with writing(self._folder.diagnostics.path, DISK_FULL_REMEDY):
                self._folder.diagnostics.rewind(updates)
        reported = [record for record in self._folder.diagnostics.read() if update_of(record) <= updates]
        self._reported = {str(record.get("rule")) for record in reported}
        self._history = []
        for record in self._folder.metrics.read():
            if update_of(record) <= updates:
                numbers = {name: number(value) for name, value in record.items()}
                self._remember({name: value for name, value in numbers.items() if value is not None})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        method = method_of(pl_module)
        self._remember(dict(method.last_metrics))
        for rule in self._rules:
            text = None if rule.name in self._reported else rule.message(self._history)
            if text is not None:
                self._report(trainer, method.counters.updates, rule, text)

    def _remember(self, entry: dict[str, float]) -> None:
        """Keeps the first FIRST and the last RECENT updates, which bounds memory and is enough for every rule."""
        self._history.append(entry)
        if len(self._history) > FIRST + RECENT:
            del self._history[FIRST]

    def _report(self, trainer: Trainer, update: int, rule: Rule, text: str) -> None:
        self._reported.add(rule.name)
        if trainer.is_global_zero:
            record = {"update": update, "rule": rule.name, "title": rule.title, "text": text, "stops": rule.stops}
            with writing(self._folder.diagnostics.path, DISK_FULL_REMEDY):
                self._folder.diagnostics.append(record)
        if rule.stops:
            raise ConfigError(f"stopped at update {update}: {text}")
        if trainer.is_global_zero:
            self._console.print(f"{rule.title} (update {update})", style="bold cyan", markup=False)
            self._console.print(Padding(text, (0, 0, 0, 2), expand=False), markup=False)
