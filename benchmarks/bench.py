"""CPU time and memory of every method's default run on the bundled model, compared with the committed measurement.

    make bench                                  # all methods, under ten minutes; prints a table
    python benchmarks/bench.py --methods sft,grpo --write

The unit of comparison is the time of an update relative to matrix products of the same run, for machines of the same
kind: GFLOP of float32 products that take as long as the update, on one thread. A method is marked if it takes 10 %
more than in benchmarks/bench.json; `--write` replaces that file. Each method runs in a separate process, because peak
memory is per process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from measure import Stopwatch
from run_ours import time_updates

HERE = Path(__file__).resolve().parent
CONF = HERE.parent / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
COMMITTED = HERE / "bench.json"
WARMUP, UPDATES = 2, 6
SLOWER = 1.1
TEACHER = CONF.parent / "postrain" / "assets" / "nano"
"""The teacher of distillation: an update costs the same with other weights."""
SHORT = (
    "evaluation.completions=0",
    "data.eval_rows=16",
    "report=false",
    "logger=none",
    "trainer.threads=1",
    "trainer.checkpoint_every=1000000",
)


def main() -> None:
    """Measure the methods and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--write", action="store_true", help="replace the committed measurement of these methods")
    parser.add_argument("--child", nargs=2, metavar=("METHOD", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        sys.exit(run_method(args.child[0], Path(args.child[1])))
    before = json.loads(COMMITTED.read_text(encoding="utf-8")) if COMMITTED.is_file() else {"methods": {}}
    found = {"machine": machine(), "methods": {}}
    print(
        "| method | CPU-s/update | GFLOP | against the committed | CPU-s to update 1 | peak MB |\n" + "|---" * 6 + "|"
    )
    for method in args.methods.split(","):
        found["methods"][method] = measured(method)
        print(line(method, found["methods"], before["methods"]), flush=True)
    if args.write:
        found["methods"] = before["methods"] | found["methods"]
        COMMITTED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if list(slower(found["methods"], before["methods"])) else 0)


def run_method(method: str, out: Path, *words: str, updates: int = WARMUP + UPDATES) -> int:
    """Runs a few updates of a method in this process and writes their times."""
    from postrain.cli.main import start  # noqa: PLC0415 - not in the process that starts the others

    time_updates(Stopwatch(), out, updates)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["POSTRAIN_CACHE"] = f"{scratch}/cache"
        words = (*words, f"teacher={TEACHER}") if method == "distill" else words
        settings = [f"method.updates={updates}", *SHORT, f"paths.output={scratch}"]
        return start(["train.py", f"method={method}", *settings, *words], CONF)


def measured(method: str) -> dict[str, float]:
    """The numbers of one method, from a separate process."""
    speed = gflop_per_second()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        run_child(__file__, "--child", method, str(out))
        result = json.loads(out.read_text(encoding="utf-8"))
    seconds = median(result["cpu"][WARMUP:])
    speed = (speed + gflop_per_second()) / 2
    numbers = {"cpu": seconds, "gflop": seconds * speed, "first": result["first"], "peak_mb": result["peak_mb"]}
    return {name: float(f"{value:.4g}") for name, value in numbers.items()}


def run_child(script: str, *options: str) -> None:
    """Runs a script in a separate process with one thread. Exits with its output if it fails."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, script, *options]
    done = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(options)}: {done.stdout[-1000:]}{done.stderr[-2000:]}")


def gflop_per_second(seconds: float = 0.5) -> float:
    """Float32 matrix products of 512 x 512 on one thread, in 10⁹ operations per CPU second."""
    torch.set_num_threads(1)
    one = torch.ones(512, 512)
    count, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        torch.mm(one, one)
        count += 1
    return count * 2 * 512**3 / 1e9 / (time.process_time() - start)


def machine() -> dict[str, str]:
    """What was measured on."""
    info = Path("/proc/cpuinfo")
    fields = [line.partition(":") for line in info.read_text().splitlines()] if info.is_file() else []
    name = next((value.strip() for key, _, value in fields if key.strip() == "model name"), "unknown")
    return {"processor": name, "instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__}


def line(method: str, found: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """A row of the table."""
    now, ratio = found[method], ratio_to(method, found, before)
    change = "" if ratio is None else f"{ratio:.2f}" + " **slower**" * (ratio > SLOWER)
    cells = [method, f"{now['cpu']:.3g}", f"{now['gflop']:.3g}", change, f"{now['first']:.3g}", f"{now['peak_mb']:.0f}"]
    return f"| {' | '.join(cells)} |"


def ratio_to(method: str, found: Mapping[str, Any], before: Mapping[str, Any]) -> float | None:
    """Cost of a method now, relative to the committed one; None for a new method."""
    return found[method]["gflop"] / before[method]["gflop"] if method in before else None


def slower(found: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
    """The methods that take at least SLOWER times as long."""
    ratios: Sequence[tuple[str, float | None]] = [(method, ratio_to(method, found, before)) for method in found]
    return (method for method, ratio in ratios if ratio is not None and ratio > SLOWER)


if __name__ == "__main__":
    main()
