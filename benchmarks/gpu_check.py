"""Checks postrain on one GPU in at most eight minutes: correctness, throughput and memory. Needs no network.

    make gpu-check                                                  # one GPU of 80 GB or more; writes gpu_check/
    python benchmarks/gpu_check.py FOLDER --device cpu --reduced    # the same checks on tiny models, in seconds

Models are the bundled nano and random weights in the shapes of a 135M, a 1B and a 7B model (gpu_runs.py). Every check
has a time limit, and a failed one does not end the others. FOLDER gets results.json and results.md after each check;
the exit status is 1 if one failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_correctness import (
    Result,
    bf16_near_float32,
    packed_as_separate,
    resumed_as_whole,
    rows_for,
    same_as_cpu,
    sampled_as_scored,
)
from gpu_runs import FULL, METHODS, REDUCED, REDUCED_SHAPES, SHAPES, Measured, TrainingRun, peak_flops
from gpu_speedups import (
    decoded_in_blocks,
    default_micro_batch,
    sampled_in_bf16,
    shared_prompts_in_one_kernel,
    tf32_near_float32,
)

import postrain as pt

MEMORY = 0.95, 2.0
"""Bounds of the estimated memory relative to the measured one."""
GIB = 2**30


class Skipped(Exception):
    """A check that cannot run here; the message is the reason."""


class OutOfTime(BaseException):
    """The time limit of a check; not an Exception, which code on the way could catch."""


Check = tuple[str, float, Callable[[str], Result]]
"""Name, limit in seconds, and function."""


# Throughput and memory --------------------------------------------------------------------------------------------


def throughput(name: str, run: TrainingRun, measured: dict[str, Measured]) -> Result:
    """Trains; the result is also kept in `measured`."""
    dtype = torch.float32 if run.shape.precision == "fp32" else torch.bfloat16
    peak = peak_flops(run.device, dtype, run.size.matmul)
    with tempfile.TemporaryDirectory() as folder:
        found = measured[run.name] = run.measure(Path(folder))
    share = found.flops_per_second / peak
    numbers = {"tokens_per_second": found.tokens_per_second, "share_of_peak": share, "peak_flops": peak}
    text = f"{found.tokens_per_second:,.0f} tokens/s, {share:.1%} of {peak / 1e12:.3g} TFLOP/s"
    return Result(name, "passed", text, {**numbers, "parameters": found.parameters})


def memory(name: str, run: TrainingRun, measured: dict[str, Measured]) -> Result:
    """The estimate against the peak of the run in `measured`."""
    with tempfile.TemporaryDirectory() as folder:
        found = run.estimate(Path(folder))
    estimated = found.total - found.process  # the allocator does not count the CUDA context
    if run.device.type != "cuda":
        raise Skipped(f"estimate {estimated / GIB:.2g} GiB; only a GPU reports the memory of one run")
    if run.name not in measured:
        raise Skipped(f"estimate {estimated / GIB:.2g} GiB; the run that is measured did not end")
    peak = measured[run.name].peak_bytes or 0
    ratio = estimated / peak
    text = f"estimate {estimated / GIB:.3g} GiB, measured {peak / GIB:.3g} GiB: {ratio:.2f} times (bounds {MEMORY})"
    numbers = {"estimated": estimated, "measured": peak, **{f"estimated {k}": v for k, v in found.parts().items()}}
    return Result(name, "passed" if MEMORY[0] <= ratio <= MEMORY[1] else "failed", text, numbers)


# Running and reporting --------------------------------------------------------------------------------------------


def checks(device: torch.device, *, reduced: bool) -> Iterator[Check]:
    """All checks, in order."""
    nano, tokenizer = pt.load_model("nano")
    shapes, size = (REDUCED_SHAPES, REDUCED) if reduced else (SHAPES, FULL)
    models = {"nano": nano, shapes[0].name: shapes[0].load(torch.device("cpu"), torch.float32)}
    for label, model in models.items():
        rows = rows_for(len(tokenizer))
        yield f"CPU = {device.type}, {label}", 40, partial(same_as_cpu, model=model, rows=rows, device=device)
        yield f"bf16 autocast, {label}", 20, partial(bf16_near_float32, model=model, rows=rows, device=device)
        yield f"packed = separate rows, {label}", 20, partial(packed_as_separate, model=model, rows=rows, device=device)
        sampling = partial(sampled_as_scored, model=model, tokenizer=tokenizer, rows=rows, device=device)
        yield f"sampled = scored, {label}", 20, sampling
    label, model = shapes[0].name, models[shapes[0].name]
    yield from speedups(label, model, tokenizer, device, tokens=8 if reduced else 512)
    yield "resumed = uninterrupted GRPO, nano", 60, partial(resumed_as_whole, device=device)
    measured: dict[str, Measured] = {}
    for shape in shapes:
        for method in ("grpo",) if reduced and shape is not shapes[0] else METHODS:
            run = TrainingRun(shape, method, size, device, tokenizer)
            yield f"throughput, {run.name}", 90, partial(throughput, run=run, measured=measured)
            yield f"memory, {run.name}", 30, partial(memory, run=run, measured=measured)
        run = TrainingRun(shape, "sft", size, device, tokenizer)
        if shape is shapes[0] or not reduced:
            yield f"default micro-batch, {run.name}", 90, partial(default_micro_batch, run=run)


def speedups(label: str, model: Any, tokenizer: Any, device: torch.device, tokens: int) -> Iterator[Check]:
    """What is computed in another way on a GPU; `tokens` of a long prompt."""
    known = {"model": model, "rows": rows_for(len(tokenizer)), "device": device}
    yield f"bf16 decoding, {label}", 30, partial(sampled_in_bf16, tokenizer=tokenizer, **known)
    yield f"decoding without waiting, {label}", 20, partial(decoded_in_blocks, tokenizer=tokenizer, **known)
    yield f"shared prompts in one kernel, {label}", 90, partial(shared_prompts_in_one_kernel, tokens=tokens, **known)
    yield f"TF32, {label}", 20, partial(tf32_near_float32, **known)


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raises OutOfTime after this time."""

    def end(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, end)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def result_of(check: Check, left: float) -> Result:
    """Runs a check in its time limit."""
    name, limit, function = check
    if left <= 0:
        return Result(name, "skipped", "no time left (--minutes)")
    started, limit = time.monotonic(), min(limit, left)
    try:
        with limited(limit):
            found = function(name)
    except Skipped as reason:
        found = Result(name, "skipped", str(reason))
    except OutOfTime:
        found = Result(name, "failed", f"not finished in {limit:.0f} s", traceback=traceback.format_exc())
    except Exception as error:  # a failed check does not end the others
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        found = Result(name, "failed", text, traceback=traceback.format_exc())
    found.seconds = time.monotonic() - started
    return found


def table(results: Sequence[Result], machine: str) -> str:
    """The results as Markdown."""
    counts = ", ".join(f"{sum(r.status == each for r in results)} {each}" for each in ("passed", "failed", "skipped"))
    lines = [f"{machine}: {counts}.", "", "| check | status | seconds | result |", "|---|---|---|---|"]
    for each in results:
        text = each.text.replace("|", "\\|")
        lines.append(f"| {each.name} | {each.status} | {each.seconds:.1f} | {text} |")
    return "\n".join(lines) + "\n"


def machine_of(device: torch.device) -> str:
    """The device and the version of PyTorch."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return f"{name}, torch {torch.__version__}, postrain {pt.__version__}"


def run_checks(folder: Path, device: torch.device, *, reduced: bool, minutes: float) -> list[Result]:
    """Runs all checks and writes the results after each of them."""
    folder.mkdir(parents=True, exist_ok=True)
    end, results, machine = time.monotonic() + 60 * minutes, [], machine_of(device)
    for check in checks(device, reduced=reduced):
        found = result_of(check, end - time.monotonic())
        results.append(found)
        print(f"{found.status:<8}{found.seconds:6.1f} s  {found.name}: {found.text}", flush=True)
        record = {"machine": machine, "reduced": reduced, "results": [asdict(each) for each in results]}
        (folder / "results.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
        (folder / "results.md").write_text(table(results, machine), encoding="utf-8")
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("gpu_check"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--reduced", action="store_true", help="tiny models: tests the checks, not the device")
    parser.add_argument("--minutes", type=float, default=8.0, help="checks that do not fit are skipped")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("--device cuda: no CUDA GPU is visible to PyTorch here; use --device cpu --reduced", file=sys.stderr)
        return 2
    if given.folder.exists() and not given.folder.is_dir():
        print(f"{given.folder}: expected a folder for the results, found a file; name another one", file=sys.stderr)
        return 2
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # Read by cuBLAS when it starts; deterministic kernels need it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Ends a process that hangs in a kernel, where no signal handler runs.
    faulthandler.dump_traceback_later(60 * given.minutes + 30, exit=True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            results = run_checks(given.folder, torch.device(given.device), reduced=given.reduced, minutes=given.minutes)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"{given.folder / 'results.md'}, {given.folder / 'results.json'}")
    return int(any(each.status == "failed" for each in results))


if __name__ == "__main__":
    sys.exit(main())
