"""Share of the processor's peak that updates reach, and of the memory bandwidth that decode steps reach.

    python benchmarks/roofline.py [--methods sft,grpo] [--updates 4 model=smollm2 method.batch_size=4]

Runs on the bundled model; other words are config overrides. Three processes per method run the same updates. The first
one is timed. The second one counts the operations of matrix products in forward pass, backward pass and decode steps,
and the bytes of their operands. The third one is profiled. Peak (products of 512 x 512 in float32) and bandwidth (a
matrix of 1 GiB times a vector) are of one thread, before and after the first process. Medians without update 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from operator import sub
from pathlib import Path
from statistics import mean, median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from bench import METHODS, gflop_per_second, run_child, run_method
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from postrain.methods.base import Method
from postrain.rollout.decode.backend import SlotBackend

ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
PARTS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "_linear_pointwise", "linear_dynamic"),
    "attention": (ATTENTION, f"{ATTENTION}_backward"),
    "AdamW": ("_fused_adamw_",),
}
"""Operators by purpose. The others are elementwise operations, reductions and copies."""
UPDATE = ("method", "CPU-s", "GFLOP", "of the peak", *PARTS, "other operators", "between operators")
STEP = ("method", "steps", "of the update", "CPU-ms", "GFLOP", "MB", "of the peak", "of the bandwidth")


class Products(TorchDispatchMode):
    """Counts operations and operands' bytes of matrix products and attention. PyTorch's FlopCounterMode leaves out
    oneDNN's products of packed weights and attention on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if flops := flops_of(func.__name__.partition(".")[0], args, output):
            self.flops += flops
            operands = [each for each in args if isinstance(each, Tensor)]
            self.bytes += sum(each.numel() * each.element_size() for each in operands)
        return output


def flops_of(operator: str, args: Sequence[Any], output: Any) -> int:
    """Operations of a matrix product, 2 per multiplication; 0 of other operators."""
    if operator in PARTS["attention"]:
        # Two products [Q, K] · [K, L]; backward five, one of them again. Masked positions count.
        products, query, key = (2, args[0], args[1]) if operator == ATTENTION else (5, args[1], args[2])
        return products * 2 * query.numel() * key.shape[-2]
    if operator not in PARTS["products"]:
        return 0
    one = args[1] if operator in ("addmm", "baddbmm") else args[0]
    return 2 * output.numel() * one.shape[-1]


def measure(what: str, out: Path, method: str, updates: int, words: Sequence[str]) -> int:
    """Runs the updates in this process and writes a reading of each: CPU seconds with "time", operations and bytes with
    "count", both of the whole update and of its decode steps; with "profile" the shares of PARTS."""
    products, update, step = Products(), Method.training_step, SlotBackend.step
    in_steps, found = list[list[float]](), list[Any]()

    def reading() -> list[float]:
        return [products.flops, products.bytes] if what == "count" else [time.process_time()]

    def measured_step(self: SlotBackend, tokens_B: Tensor) -> Tensor:
        before = reading()
        logits_BV = step(self, tokens_B)
        in_steps.append([1, *map(sub, reading(), before)])
        return logits_BV

    def measured_update(self: Method, batch: Any, batch_idx: int) -> None:
        in_steps.clear()
        before = reading()
        with products if what == "count" else nullcontext():
            update(self, batch, batch_idx)
        of_steps = [sum(column) for column in zip(*in_steps, strict=True)]
        found.append({"update": [*map(sub, reading(), before)], "steps": of_steps})

    def profiled_update(self: Method, batch: Any, batch_idx: int) -> None:
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            start = time.perf_counter()
            update(self, batch, batch_idx)
            seconds = time.perf_counter() - start
        found.append(shares_of_parts(profiled, seconds))

    Method.training_step = profiled_update if what == "profile" else measured_update
    SlotBackend.step = measured_step
    code = run_method(method, out, *words, updates=updates)
    out.write_text(json.dumps(found), encoding="utf-8")
    return code


def shares_of_parts(profiled: Any, seconds: float) -> list[float]:
    """Share in `seconds` of the operators of each part, of other operators, and of the time between operators."""
    own: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        own[event.key.split("::")[-1]] += event.self_cpu_time_total / 1e6 / seconds
    parts = [sum(own[name] for name in names) for names in PARTS.values()]
    return [*parts, sum(own.values()) - sum(parts), 1 - sum(own.values())]


def measured(method: str, updates: int, words: Sequence[str]) -> dict[str, Any]:
    """The readings of one method, each from a separate process, and the speeds of this machine."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        for what in ("time", "count", "profile"):
            before = speeds() if what == "time" else []
            run_child(__file__, "--methods", method, "--updates", str(updates), "--child", what, str(out), *words)
            found[what] = json.loads(out.read_text(encoding="utf-8"))[1:]
            if what == "time":
                found["speeds"] = [mean(pair) for pair in zip(before, speeds(), strict=True)]
    return found


def speeds() -> list[float]:
    """Operations of matrix products, and bytes read from memory, per CPU second of one thread."""
    flops = 1e9 * gflop_per_second()
    matrix, vector, times = torch.ones(2**14, 2**14), torch.ones(2**14), []
    for _ in range(5):
        start = time.process_time()
        torch.mv(matrix, vector)
        times.append(time.process_time() - start)
    return [flops, matrix.nbytes / median(times)]


def update_cells(found: Any) -> list[str]:
    """Cells of the first table, without the method."""
    rows = []
    for timed, counted, shares in zip(found["time"], found["count"], found["profile"], strict=True):
        (seconds,), (flops, _) = timed["update"], counted["update"]
        rows.append([seconds, flops / 1e9, flops / seconds / found["speeds"][0], *shares])
    return cells(rows, ".3g .3g .0% .0% .0% .0% .0% .0%")


def step_cells(found: Any) -> list[str]:
    """Cells of the second table, without the method: means over the steps of an update, medians over the updates."""
    rows = []
    for timed, counted in zip(found["time"], found["count"], strict=True):
        (number, seconds), (_, flops, read) = timed["steps"], counted["steps"]
        peak, bandwidth = found["speeds"]
        means = 1e3 * seconds / number, flops / number / 1e9, read / number / 1e6
        shares = flops / seconds / peak, read / seconds / bandwidth
        rows.append([number, seconds / timed["update"][0], *means, *shares])
    return cells(rows, ".0f .0% .3g .3g .3g .0% .0%")


def cells(rows: Sequence[Sequence[float]], formats: str) -> list[str]:
    """The median of each column."""
    return [format(median(column), one) for column, one in zip(zip(*rows, strict=True), formats.split(), strict=True)]


def main() -> None:
    """Measure the methods and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--updates", type=int, default=7)
    parser.add_argument("--child", nargs=2, metavar=("MEASURE", "FILE"), help=argparse.SUPPRESS)
    args, words = parser.parse_known_args()
    if args.child:
        sys.exit(measure(args.child[0], Path(args.child[1]), args.methods, args.updates, words))
    print_rows([UPDATE, ["---"] * len(UPDATE)])
    steps, speeds_found = [], []
    for method in args.methods.split(","):
        found = measured(method, args.updates, words)
        print_rows([[method, *update_cells(found)]])
        speeds_found.append(found["speeds"])
        steps += [[method, *step_cells(found)]] if found["time"][0]["steps"] else []
    peak, bandwidth = (median(values) / 1e9 for values in zip(*speeds_found, strict=True))
    print(f"\n{peak:.0f} GFLOP/s, {bandwidth:.1f} GB/s on one thread\n")
    print_rows([STEP, ["---"] * len(STEP), *steps] if steps else [])


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    print("\n".join(f"| {' | '.join(row)} |" for row in rows), flush=True)


if __name__ == "__main__":
    main()
