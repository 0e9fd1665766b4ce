"""python -m postrain.cli.probe RUN: bias and signal-to-noise ratio of a gradient, per estimator and group size."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postrain.cli import publish
from postrain.config.paths import command
from postrain.errors import Parser

if TYPE_CHECKING:
    from postrain.evaluation.estimate import Estimate
    from postrain.training.gradient_probe import Measurement

ROUNDING = 1e-4
"""Biases below this are due to the order of summation in float32."""
COLUMNS = ("estimator", "samples", "scale", "bias", "cosine", "SNR", "noise scale")


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code, 2 for a mistake."""
    return publish.run_command(probe, parser(), argv)


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog=command("probe"),
        description="Measures bias and signal-to-noise ratio of the gradient of one update against a reference "
        "gradient from N times the samples, for several baselines, scalings, aggregations and group sizes.",
    )
    found.add_argument("run", metavar="RUN", help="a run folder, or overrides, as in method=grpo")
    found.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="changed settings of the run")
    found.add_argument(
        "--factor", type=int, default=64, metavar="N", help="samples, in those of an update; default: 64"
    )
    found.add_argument(
        "--update", type=int, default=0, metavar="N", help="the newest checkpoint up to this update; default: 0, none"
    )
    found.add_argument("--estimators-only", action="store_true", help="only the group size of the run")
    found.add_argument("--output", type=Path, metavar="DIR", help="output folder; default RUN/probe, or probe")
    return found


def probe(chosen: Namespace) -> None:
    """Measures, prints the table, and writes it with its picture."""
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    from postrain.cli.sides import side  # noqa: PLC0415
    from postrain.jobs.session import silence_library_warnings  # noqa: PLC0415
    from postrain.methods.group_relative import GroupRelative  # noqa: PLC0415
    from postrain.training import gradient_probe  # noqa: PLC0415
    from postrain.training.first_update import checkpoint_before  # noqa: PLC0415

    silence_library_warnings()
    run = side(chosen.run, chosen.overrides)
    checkpoint, done = checkpoint_before(run.folder, chosen.update + 1)
    with (
        Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress,
        redirect_stdout(StringIO()),
    ):
        task = progress.add_task("updates", total=None)
        made = gradient_probe.Probe(run.config, chosen.factor, checkpoint, lambda: progress.advance(task))
        if not isinstance(made.method, GroupRelative):
            progress.update(task, total=chosen.factor)
            found = made.own()
        else:
            sizes = [] if chosen.estimators_only else gradient_probe.group_sizes(*made.sizes)
            progress.update(task, total=chosen.factor * (1 + len(sizes)))
            found = made.group(made.sizes[1], (gradient_probe.OWN, *gradient_probe.ESTIMATORS))
            for size in sizes:
                found += made.group(size, gradient_probe.OF_GROUP_SIZES)
    show(found, f"update {done} of {chosen.run}, {chosen.factor} updates of samples", made.skipped)
    out = chosen.output or (run.folder.path / "probe" if run.folder else Path("probe"))
    write(out, found, made.sizes[1], {"run": chosen.run, "update": done, "factor": chosen.factor}, made.skipped)
    print(f"written {out}/probe.json, probe.svg, probe.png")


def show(found: Sequence[Measurement], title: str, skipped: dict[str, str]) -> None:
    """Prints the table."""
    from rich.console import Console  # noqa: PLC0415 - start-up time

    from postrain.formatting import console_table, figure  # noqa: PLC0415 - start-up time

    def around(one: Estimate) -> str:
        return "0" if one.high < ROUNDING else str(one)

    rows = [
        [
            one.name,
            f"{one.prompts} × {one.group_size}",
            figure(one.quality.scale),
            around(one.quality.bias),
            f"{one.quality.cosine.value:.3f}",
            around(one.quality.snr),
            figure(one.noise_scale),
        ]
        for one in found
    ]
    console = Console(highlight=False)
    table = console_table(COLUMNS, rows, title)
    for column in (0, 1, -1):
        table.columns[column].no_wrap = True
    console.print(table)
    for name, reason in skipped.items():
        console.print(f"{name}: not measured: {reason}", soft_wrap=True, markup=False)


def write(out: Path, found: Sequence[Measurement], size: int, about: dict[str, Any], skipped: dict[str, str]) -> None:
    """Writes probe.json, probe.svg and probe.png."""
    from postrain.jsonl import atomic_write_text, plain  # noqa: PLC0415 - start-up time
    from postrain.report.pictures import write_sheet  # noqa: PLC0415 - start-up time
    from postrain.report.probe_sheet import Estimator, Point, probe_sheet  # noqa: PLC0415 - start-up time
    from postrain.runs.folder import writing  # noqa: PLC0415 - start-up time

    def point(one: Estimate) -> Point:
        return Point(one.value, one.low, one.high)

    content = {**about, "measurements": [{**asdict(one), "noise_scale": one.noise_scale} for one in found]}
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        text = json.dumps(plain({**content, "not_measured": skipped}), indent=2, ensure_ascii=False)
        atomic_write_text(out / "probe.json", text + "\n")
    shown = [Estimator(one.name, one.group_size, point(one.quality.bias), point(one.quality.snr)) for one in found]
    write_sheet(out, probe_sheet(shown, size, f"The gradient of {about['run']}"), ["svg"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
