"""benchmarks/bench.py: the comparison with the committed measurement, and the updates that it times. And roofline.py:
the operations that it counts."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from postrain.methods.base import Method

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("bench")


def test_a_method_that_takes_a_tenth_longer_is_marked(bench):
    before = {"sft": {"gflop": 10.0}, "dpo": {"gflop": 20.0}}
    now = {"cpu": 0.125, "first": 5.25, "peak_mb": 512.4}
    found = {"sft": now | {"gflop": 10.9}, "dpo": now | {"gflop": 23.0}, "new": now | {"gflop": 5.0}}
    assert [bench.line(method, found, before) for method in found] == [
        "| sft | 0.125 | 10.9 | 1.09 | 5.25 | 512 |",
        "| dpo | 0.125 | 23 | 1.15 **slower** | 5.25 | 512 |",
        "| new | 0.125 | 5 |  | 5.25 | 512 |",
    ]
    assert list(bench.slower(found, before)) == ["dpo"]


def test_every_method_has_a_committed_measurement(bench):
    assert sorted(json.loads(bench.COMMITTED.read_text())["methods"]) == bench.METHODS


def test_updates_are_timed(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(Method, "training_step", Method.training_step)  # restored after the test
    monkeypatch.setenv("POSTRAIN_CACHE", "")
    code = bench.run_method("sft", tmp_path / "out.json", "method.batch_size=4", "data.source.count=64")
    assert code == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["cpu"]) == bench.WARMUP + bench.UPDATES
    assert min(found["first"], found["peak_mb"], *found["cpu"]) > 0


def test_operations_of_products_and_attention_are_counted_forward_and_backward(bench):
    counted = import_module("roofline").Products()
    x_34, weight_54 = torch.randn(3, 4), torch.randn(5, 4, requires_grad=True)
    heads_1286 = torch.randn(1, 2, 8, 6, requires_grad=True)
    with counted:
        F.linear(x_34, weight_54).sum().backward()
    # x · Wᵀ and the gradient of W: 2 × 3 · 4 · 5 each. Operands: 12 + 20 numbers, then 15 + 12, of 4 bytes.
    assert (counted.flops, counted.bytes) == (2 * 2 * 60, 4 * (32 + 27))
    before = counted.flops
    with counted:
        F.scaled_dot_product_attention(heads_1286, heads_1286, heads_1286).sum().backward()
    # A product of queries and keys takes 2 × 2 heads · 8 · 8 · 6; two forward, five backward.
    assert counted.flops - before == 7 * 2 * 768
