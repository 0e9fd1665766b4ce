"""python -m postrain.cli.why RUN --update N: the rows of an update, ranked by their effect on a held-out number."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence

from postrain.cli import publish
from postrain.config.paths import command
from postrain.errors import Parser
from postrain.formatting import console_table, figure, without_middle


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code, 2 for a mistake."""
    return publish.run_command(why_run, parser(), argv)


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog=command("why"),
        description="Repeats an update of a run and ranks its rows by their effect on a held-out number, to first "
        "order: the held-out loss, or the held-out reward of a method that samples. Writes RUN/why/.",
    )
    found.add_argument("run", metavar="RUN", help="a run folder")
    found.add_argument(
        "confirm", metavar="KEY=VALUE", nargs="*", default=[], help="values of RUN that name code or an address"
    )
    found.add_argument("--update", type=int, required=True, help="the update, from 1")
    found.add_argument("--rows", type=int, default=5, help="rows to show from either end; default 5")
    return found


def why_run(chosen: Namespace) -> None:
    """Repeats the update, prints the rows and writes the page."""
    # Imported here for a fast start-up: --help needs no torch.
    from rich.console import Console  # noqa: PLC0415

    from postrain.jobs.replay import trusted_run  # noqa: PLC0415
    from postrain.jobs.why import extremes, sentence, why, write  # noqa: PLC0415

    run = trusted_run(chosen.run, chosen.confirm, "why")
    about, rows = why(run, chosen.update)
    console = Console(highlight=False)
    console.print(sentence(about), markup=False)
    columns = ("row", about["metric"], "loss", *(("advantage", "clipped tokens") if rows[0].tokens else ()), "text")
    for title, part in extremes(rows, max(1, chosen.rows)):
        lines = []
        for row in part:
            own = [str(row.row), f"{row.effect:+.3g}", figure(row.metrics["loss"])]
            if row.tokens:
                clipped = sum(bool(token["clipped"]) for token in row.tokens)
                own += [figure(row.tokens[0]["advantage"]), f"{clipped} of {len(row.tokens)}"]
            lines.append([*own, text_of(row.texts)])
        if lines:
            console.print(console_table(columns, lines, title, []))
    console.print(f"page  {write(run, about, rows, max(1, chosen.rows))}", soft_wrap=True, markup=False)


def text_of(texts: Mapping[str, tuple[str, str]]) -> str:
    """The prompt, and the completion or both sides of a pair."""
    prompt = next(iter(texts.values()))[0]
    sides = " | ".join(f"{name}: {text}" if len(texts) > 1 else text for name, (_, text) in texts.items())
    prompt, sides = (" ".join(text.split()) for text in (prompt, sides))
    return f"{without_middle(prompt, 100)} → {without_middle(sides, 140)}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
