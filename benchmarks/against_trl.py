"""Seconds per update, tokens per second and peak memory of our methods, beside TRL's on the same token rows.

    python benchmarks/against_trl.py --methods sft,reward,ppo,dpo,kto,orpo,grpo,rloo --models nano,smollm2 \\
        --trl-python TRL_VENV/bin/python --ppo-python OLD_TRL_VENV/bin/python

Every measurement runs in a separate process, so that peak memory is its own; ours and TRL alternate, so that what else
the machine does falls on both. Leaves out start-up, data loading and evaluation. benchmarks/README.md has results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).parent
BATCH = {"nano": 16, "smollm2": 4}
PPO_BATCH = {"nano": 16, "smollm2": 8}
GROUPS = {"nano": (16, 8), "smollm2": (2, 4)}
"""Prompts of an update, and completions of each, of methods that compare completions."""
GROUPED = ("grpo", "rloo")
NEW_TOKENS = 48
EPOCHS = 4
VARIANTS = {"ppo": ("ppo", "ppo_shared"), "dpo": ("dpo", "dpo_cached"), "kto": ("kto", "kto_cached")}
"""Our variants of a method; the first does TRL's computation, the others what we would rather do."""


@dataclass(frozen=True)
class Measured:
    """All rounds of one side of one benchmark, the warm-up left out."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    pass_cpu_seconds: float
    """What the method did once, before its first update."""


def main() -> None:
    """Measures and prints a table."""
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
    parser.add_argument("--methods", default="sft,reward,ppo,dpo,kto,orpo,grpo,rloo")
    parser.add_argument("--models", default="nano,smollm2")
    parser.add_argument("--trl-python", help="an interpreter with TRL; without it only ours is measured")
    parser.add_argument("--ppo-python", help="an interpreter with TRL 1.12, the last with PPO (default: --trl-python)")
    parser.add_argument("--rounds", type=int, default=3, help="processes a side, in turns")
    parser.add_argument("--updates", type=int, default=6, help="timed updates a process")
    parser.add_argument("--warmup", type=int, default=2, help="updates before the clock counts")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def print_header() -> None:
    columns = ["method", "model", "side", "CPU-s/update", "tokens/CPU-s", "s/update", "tokens/s", "peak MB"]
    print(f"| {' | '.join([*columns, 'against TRL: CPU, wall, memory'])} |")
    print("|---" * (len(columns) + 1) + "|")


def prepare(model: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rows, as text for us and as ids for TRL, and a reward model of the policy's own size."""
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
    """Table rows of one method on one model: TRL's, then each of ours against it."""
    sides = dict.fromkeys(VARIANTS.get(method, (method,)), run_ours)
    if args.trl_python:
        sides = {"TRL": run_trl, **sides}
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(args.rounds):
        for side, measure in sides.items():
            found[side].append(measure(side if side != "TRL" else method, method, rows, args))
    summaries = {side: summary(rounds, args.warmup) for side, rounds in found.items()}
    for side, ours in summaries.items():
        cells = [method, model, side if side == "TRL" else f"ours: {side}"]
        for seconds in (ours.cpu_seconds, ours.seconds):
            cells += [short(seconds), short(rows["tokens"][method] / seconds)]
        cells += [f"{ours.peak_mb:.0f}", against(ours, summaries.get("TRL"))]
        yield f"| {' | '.join(cells)} |"


def short(value: float) -> str:
    """Three digits, but never an exponent."""
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def against(ours: Measured, peer: Measured | None) -> str:
    """CPU, wall and memory beside the peer's, and what came before the clock."""
    notes = []
    if peer is not None and peer is not ours:
        time, cpu = peer.seconds / ours.seconds, peer.cpu_seconds / ours.cpu_seconds
        notes += [f"{cpu:.1f}x faster, {time:.1f}x faster, {ours.peak_mb / peer.peak_mb:.2f} of it"]
    # A method without a pass still sets itself up, in no time.
    if ours.pass_cpu_seconds > 0.01:
        notes += [f"pass before: {short(ours.pass_cpu_seconds)} CPU-s"]
    return "; ".join(notes)


def summary(rounds: list[dict[str, Any]], warmup: int) -> Measured:
    """Medians over the updates of all rounds; the largest peak; the median pass."""

    def middle(key: str) -> float:
        return median([value for measured in rounds for value in measured[key][warmup:]])

    peak, before = (tuple(measured[key] for measured in rounds) for key in ("peak_mb", "pass_cpu"))
    return Measured(middle("wall"), middle("cpu"), max(peak), median(before))


def run_ours(variant: str, method: str, rows: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    return measured([sys.executable, HERE / "run_ours.py", "--variant", variant], method, rows, args)


def run_trl(_: str, method: str, rows: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    python = args.ppo_python or args.trl_python if method == "ppo" else args.trl_python
    return measured([python, HERE / "run_trl.py", "--method", method], method, rows, args)


def measured(command: list[Any], method: str, rows: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """One process of one side."""
    prompts, group = GROUPS[rows["name"]] if method in GROUPED else (0, 1)
    batch = prompts or (PPO_BATCH if method == "ppo" else BATCH)[rows["name"]]
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
    }
    run([*command, *options(values)], args.threads)
    return json.loads(out.read_text(encoding="utf-8"))


def options(values: dict[str, Any]) -> list[str]:
    """A mapping as command-line options."""
    return [f"--{name}={value}" for name, value in values.items()]


def run(command: list[Any], threads: int) -> None:
    """A process on `threads` cores, offline; its output is shown only when it fails."""
    settings = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(part) for part in command], env=os.environ | settings, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


if __name__ == "__main__":
    main()
