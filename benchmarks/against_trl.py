"""Seconds per update, tokens per second and peak memory of postrain and TRL on the same token rows.

    python benchmarks/against_trl.py --methods sft,dpo,ppo --models nano,smollm2 \\
        --trl-python TRL_VENV/bin/python --old-trl-python OLD_TRL_VENV/bin/python

Each measurement runs in a separate process, because peak memory is per process. The two sides alternate, so that other
load on the machine affects both. Leaves out start-up, data loading and evaluation. Results: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

HERE = Path(__file__).parent
BATCH = {"nano": 16, "smollm2": 4}
PPO_BATCH = {"nano": 16, "smollm2": 8}
GROUPS = {"nano": (16, 8), "smollm2": (2, 4)}
"""Prompts per update and completions per prompt of the group-relative methods; distill has one completion of each of as
many prompts."""
GROUPED = ("grpo", "rloo")
METHODS = ("sft", "reward", "prm", "dpo", "kto", "orpo", "ppo", *GROUPED, "online_dpo", "nash_md", "distill")
REMOVED = ("ppo", "nash_md", "prm")
"""Methods that TRL 1.16 does not have any more."""
TRL = ("TRL", "TRL, best")
"""TRL at its defaults and at its fastest settings; see run_trl.py."""
NEW_TOKENS = 48
EPOCHS = 4
VARIANTS = {"ppo": ("ppo", "ppo_shared"), "dpo": ("dpo", "dpo_cached"), "kto": ("kto", "kto_cached")}
"""postrain's variants of a method. The first does the same computation as TRL, the others use a faster option."""


@dataclass(frozen=True)
class Summary:
    """One side of one benchmark over all rounds, without the warm-up."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    pass_cpu_seconds: float
    """CPU seconds of the reference pass before the first update, if there is one."""


def main() -> None:
    """Measure all methods and print a table."""
    args = arguments()
    print_header()
    with tempfile.TemporaryDirectory() as scratch:
        for model in args.models.split(","):
            rows = prepare(model, args, Path(scratch) / model)
            for method in args.methods.split(","):
                for line in compare(method, model, rows, args):
                    print(line, flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--models", default="nano,smollm2")
    parser.add_argument("--trl-python", help="a Python interpreter with TRL; without it only postrain is measured")
    parser.add_argument(
        "--old-trl-python", help=f"a Python interpreter with TRL 1.12, the last release with {', '.join(REMOVED)}"
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes per side, alternating")
    parser.add_argument("--updates", type=int, default=6, help="timed updates per process")
    parser.add_argument("--warmup", type=int, default=2, help="untimed updates per process before the timed ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=("32", "bf16-mixed"), default="32", help="of both sides")
    return parser.parse_args()


def print_header() -> None:
    columns = ["method", "model", "side", "CPU-s/update", "tokens/CPU-s", "s/update", "tokens/s", "peak MB"]
    columns += ["against TRL: CPU, wall, memory", "against TRL, best", "reference pass before"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")


def prepare(model: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write the rows, as text for postrain and as ids for TRL, and a reward model of the policy's size."""
    folder.mkdir()
    counts = {
        "batch-size": BATCH[model],
        "ppo-batch-size": PPO_BATCH[model],
        "group-prompts": GROUPS[model][0],
        "group-size": GROUPS[model][1],
        "updates": args.warmup + args.updates,
        "new-tokens": NEW_TOKENS,
    }
    command = [sys.executable, HERE / "make_rows.py", f"--model={model}", f"--folder={folder}"]
    run([*command, *options(counts)], args.threads)
    return json.loads((folder / "rows.json").read_text(encoding="utf-8")) | {"folder": str(folder), "name": model}


def compare(method: str, model: str, rows: dict[str, Any], args: argparse.Namespace) -> Iterator[str]:
    """Table rows of one method on one model: TRL, then each variant of postrain with its ratio to TRL."""
    sides = dict.fromkeys(VARIANTS.get(method, (method,)), run_ours)
    if args.trl_python:
        sides = dict.fromkeys(TRL, run_trl) | sides
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, run_side in sides.items():
            rounds[side].append(run_side(side, method, rows, args))
    summaries = {side: summarize(measurements, args.warmup) for side, measurements in rounds.items()}
    for side, ours in summaries.items():
        cells = [method, model, side if side in TRL else f"ours: {side}"]
        for seconds in (ours.cpu_seconds, ours.seconds):
            cells += [short(seconds), short(rows["tokens"][method] / seconds)]
        sides_of_trl = [summaries.get(each) for each in TRL] if side not in TRL else [None] * len(TRL)
        cells += [f"{ours.peak_mb:.0f}", *(ratios(ours, trl) for trl in sides_of_trl), reference_pass(ours)]
        yield f"| {' | '.join(cells)} |"


def short(value: float) -> str:
    """Three significant digits, without exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratios(ours: Summary, trl: Summary | None) -> str:
    """Ratios of CPU time, wall time and memory to TRL."""
    if trl is None:
        return ""
    time, cpu = trl.seconds / ours.seconds, trl.cpu_seconds / ours.cpu_seconds
    return f"{cpu:.1f}x faster, {time:.1f}x faster, {ours.peak_mb / trl.peak_mb:.2f} of it"


def reference_pass(side: Summary) -> str:
    """CPU time of the reference pass; methods without one have a set-up of some milliseconds."""
    return f"{short(side.pass_cpu_seconds)} CPU-s" if side.pass_cpu_seconds > 0.01 else ""


def summarize(rounds: list[dict[str, Any]], warmup: int) -> Summary:
    """The median round's mean over its updates, the highest peak, the median reference pass."""

    def mean_of(key: str) -> float:
        """The median round's mean: updates differ in their number of tokens, least with rows in random order."""
        return median(mean(measurement[key][warmup:]) for measurement in rounds)

    peak, pass_cpu = (tuple(measurement[key] for measurement in rounds) for key in ("peak_mb", "pass_cpu"))
    return Summary(mean_of("wall"), mean_of("cpu"), max(peak), median(pass_cpu))


def run_ours(variant: str, method: str, rows: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    return measure([sys.executable, HERE / "run_ours.py", "--variant", variant], method, rows, args)


def run_trl(side: str, method: str, rows: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    python = args.old_trl_python or args.trl_python if method in REMOVED else args.trl_python
    command = [python, HERE / "run_trl.py", "--method", method, *(["--best"] if side == TRL[1] else [])]
    return measure(command, method, rows, args)


def measure(command: list[Any], method: str, rows: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Run one process of one side and read its measurement."""
    prompts, group = GROUPS[rows["name"]] if method in GROUPED else (0, 1)
    sizes = {"ppo": PPO_BATCH[rows["name"]], "distill": math.prod(GROUPS[rows["name"]])}
    batch = prompts or sizes.get(method, BATCH[rows["name"]])
    out = Path(rows["folder"]) / "measured.json"
    values = {
        "model": rows["model"],
        "reward-model": rows["reward_model"],
        "rows": rows["ids" if "run_trl" in str(command[1]) else "texts"][method],
        "out": out,
        "batch-size": batch,
        "group-size": group,
        "updates": args.warmup + args.updates,
        "new-tokens": NEW_TOKENS,
        "epochs": EPOCHS,
        "threads": args.threads,
        "precision": args.precision,
    }
    run([*command, *options(values)], args.threads)
    return json.loads(out.read_text(encoding="utf-8"))


def options(values: dict[str, Any]) -> list[str]:
    """Command-line options from a mapping."""
    return [f"--{name}={value}" for name, value in values.items()]


def run(command: list[Any], threads: int) -> None:
    """Run a process with `threads` threads, offline. If it fails, exit with the end of its output."""
    settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(part) for part in command], env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    main()
