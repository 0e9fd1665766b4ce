"""Metrics in the making: added up by name over micro-batches, mini-batches and ranks, then plain floats."""

from __future__ import annotations

from collections.abc import Mapping

from postrain.hardware import collectives
from postrain.types import Max, Mean

Metrics = Mapping[str, Mean | Max]


def add_metrics(into: dict[str, Mean | Max], metrics: Metrics) -> None:
    """Adds metrics up by name; tensors are detached."""
    for name, value in metrics.items():
        into[name] = added(into[name], value) if name in into else value


def added(one: Mean | Max, other: Mean | Max) -> Mean | Max:
    """The sum of two metrics of one name, which are of one kind."""
    if isinstance(one, Mean):
        assert isinstance(other, Mean)
        return one + other
    assert isinstance(other, Max)
    return one + other


def combine(metrics: Metrics) -> dict[str, float]:
    """The metrics of an update over all ranks, as plain floats in a fixed order."""
    total: dict[str, Mean | Max] = {}
    for part in collectives.gather({name: plain(value) for name, value in metrics.items()}):
        add_metrics(total, part)
    return {name: total[name].value() for name in sorted(total)}


def plain(value: Mean | Max) -> Mean | Max:
    """The same metric in plain floats, free of device and graph."""
    return Max(float(value.peak)) if isinstance(value, Max) else Mean(float(value.total), float(value.count))
