"""python -m postrain.cli.explain A B: the keys in which two runs differ, and what each changes in the first update."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from postrain.cli import publish
from postrain.config.paths import command
from postrain.errors import ConfigError, Parser

if TYPE_CHECKING:
    from postrain.cli.sides import Side
    from postrain.training.first_update import Gap, UpdateTrace
    from postrain.training.key_effects import Difference, Effect

MANY = 10.0
"""Relative changes from here on are not percentages."""
COLUMNS = ("key, A → B", "acts on", "gradient", "norm ×", "cosine", "weights")


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code, 2 for a mistake."""
    return publish.run_command(explain, parser(), argv)


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog=command("explain"),
        description="Names the keys in which two runs differ, and measures what each changes in the first update of "
        "A: the gradient of its first optimizer step, and the change of the weights. A and B are run folders, or "
        'overrides of postrain train: dialect=trl, "method=grpo seed=1".',
    )
    found.add_argument("run", metavar="A", help="a run folder, or overrides; without a method, of method=grpo")
    found.add_argument("other", metavar="B", help="another one")
    found.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE", help="settings of both")
    found.add_argument("--update", type=int, default=1, metavar="N", help="the update of A to measure; default: 1")
    found.add_argument("--json", type=Path, metavar="FILE", help="also write the table to this file")
    return found


def explain(chosen: Namespace) -> None:
    """Prints the table and writes it if asked."""
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from postrain.cli.sides import check_comparable, side  # noqa: PLC0415
    from postrain.jobs.session import silence_library_warnings  # noqa: PLC0415
    from postrain.jsonl import atomic_write_text, plain  # noqa: PLC0415

    silence_library_warnings()
    if chosen.update < 1:
        raise ConfigError(f"--update {chosen.update}: expected the number of an update, from 1")
    a, b = side(chosen.run, chosen.overrides), side(chosen.other, chosen.overrides)
    check_comparable(a, b)
    found = Explanation.of(a, b, chosen.update)
    found.show()
    if chosen.json:
        atomic_write_text(chosen.json, json.dumps(plain(found.to_dict()), indent=2, ensure_ascii=False) + "\n")
        print(f"json    {chosen.json}")


@dataclass(frozen=True)
class Explanation:
    """The measured differences of two sides."""

    a: Side
    b: Side
    update: int
    """The update of A that was measured, from 1."""
    effects: Sequence[Effect]
    """Of the keys that are part of an update, the largest first."""
    whole: Effect | None
    """Of all keys together."""
    noise: Effect
    """Of another seed, as a yardstick."""
    around: Sequence[Difference]
    """Keys that are no part of an update."""
    surroundings: Sequence[Difference]
    """Versions, hardware, code and fingerprints."""

    @classmethod
    def of(cls, a: Side, b: Side, update: int) -> Explanation:
        """Measures the update of A with each key of B."""
        from rich.console import Console  # noqa: PLC0415 - start-up time
        from rich.progress import Progress  # noqa: PLC0415

        from postrain.config.tree import parse  # noqa: PLC0415
        from postrain.training.config import TrainConfig  # noqa: PLC0415
        from postrain.training.first_update import checkpoint_before, trace_update  # noqa: PLC0415
        from postrain.training.key_effects import (  # noqa: PLC0415
            Difference,
            differences,
            effect,
            key_effects,
            with_value,
        )

        every = list(differences(a.config, b.config))
        inside = [one for one in every if not one.is_around]
        checkpoint, done = checkpoint_before(a.folder, update)
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("updates", total=len(inside) + 3)

            def trace(config: Mapping[str, Any]) -> UpdateTrace:
                progress.advance(task)
                # Notes of the run, such as the time of reference log-probabilities.
                with redirect_stdout(StringIO()):
                    return trace_update(parse(config, TrainConfig), checkpoint, done)

            base, seed = trace(a.config), Difference("seed", a.config["seed"], a.config["seed"] + 1)
            noise = effect(seed, base, trace(with_value(a.config, "seed", seed.b)))
            effects = key_effects(a.config, b.config, inside, trace, base)
            everything = Difference("all keys together", "", "")
            try:
                whole = effect(everything, base, trace(b.config)) if len(inside) > 1 else None
            except ConfigError:
                whole = None
        around = [one for one in every if one.is_around]
        surroundings = [*differences(a.surroundings(), b.surroundings())] if a.folder and b.folder else []
        return cls(a, b, done + 1, effects, whole, noise, around, surroundings)

    def show(self) -> None:
        """Prints the table and the keys that were not measured."""
        from rich.console import Console  # noqa: PLC0415 - start-up time

        from postrain.formatting import console_table  # noqa: PLC0415
        from postrain.training.key_effects import NOTHING  # noqa: PLC0415

        console = Console(highlight=False)
        console.print(f"A  {self.a.name}\nB  {self.b.name}", markup=False)
        if not self.effects:
            console.print("no key that is part of an update differs")
        else:
            rows = [row(one) for one in (*self.effects, *([self.whole] if self.whole else []))]
            title = f"update {self.update} of A, with one key of B at a time"
            table = console_table(COLUMNS, rows, title)
            table.columns[0].overflow = "fold"
            console.print(table)
            _, _, gradient, norm, cosine, weights = row(self.noise)
            console.print(
                f"Yardstick: another seed changes the gradient by {gradient} (norm × {norm}, cosine {cosine}), and the "
                f"change of the weights by {weights}."
            )
            if self.update == 1 and any(one.acts_on == NOTHING for one in self.effects):
                console.print("A key with no effect here may act later: --update N measures a later update of a run A.")
        for name, others in (("No part of an update", self.around), ("Surroundings", self.surroundings)):
            for one in others:
                console.print(f"{name}: {one.key}: {' → '.join(one.shown())}", soft_wrap=True, markup=False)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "a": self.a.name,
            "b": self.b.name,
            "update": self.update,
            "effects": [asdict(one) for one in self.effects],
            "all_keys": asdict(self.whole) if self.whole else None,
            "another_seed": asdict(self.noise),
            "no_part_of_an_update": [asdict(one) for one in self.around],
            "surroundings": [asdict(one) for one in self.surroundings],
        }


def row(found: Effect) -> list[str]:
    """The cells of a key."""
    from postrain.formatting import figure  # noqa: PLC0415 - start-up time
    from postrain.training.key_effects import ROUNDING, STEP_ROUNDING  # noqa: PLC0415

    def share(gap: Gap | None, rounding: float = ROUNDING) -> str:
        if gap is None:
            return "–"
        if gap.relative <= rounding:
            return "0"
        return f"{figure(100 * gap.relative)} %" if gap.relative < MANY else f"{figure(gap.relative)} times"

    gradient = found.gradient
    numbers = ["–", "–"] if gradient is None else [figure(gradient.norm_ratio), f"{gradient.cosine:.4f}"]
    shown = " → ".join(found.difference.shown())
    key = found.difference.key + (f"\n  {shown}" if shown.strip(" →") else "")
    return [key, found.acts_on, share(gradient), *numbers, share(found.step, STEP_ROUNDING)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
