"""python -m postrain.cli.verify RUN: re-executes random updates of a run, compares them, and writes a receipt."""

from __future__ import annotations

import json
import random
import sys
from argparse import Namespace
from collections.abc import Sequence

from postrain.cli import publish
from postrain.config.paths import command
from postrain.errors import ConfigError, Parser
from postrain.formatting import duration
from postrain.jsonl import Record, atomic_write_text, plain
from postrain.runs.folder import RunFolder

FILE = "verify.json"


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code: 1 for a mismatch, 2 for a mistake."""
    mismatch = False

    def work(chosen: Namespace) -> None:
        nonlocal mismatch
        mismatch = verify_run(chosen)["verdict"] != "verified"

    return publish.run_command(work, parser(), argv) or int(mismatch)


def parser() -> Parser:
    """The command line."""
    found = Parser(
        prog=command("verify"),
        description="Re-executes random updates of a run from its checkpoints in a temporary folder and compares "
        "metrics, samples, weights and optimizer states bit for bit. Checks the rows, the final model and its "
        f"evaluation, and all records against each other. Writes RUN/{FILE}.",
    )
    found.add_argument("run", metavar="RUN", help="a run folder")
    found.add_argument(
        "confirm", metavar="KEY=VALUE", nargs="*", default=[], help="values of RUN that name code or an address"
    )
    found.add_argument("--updates", type=int, default=3, help="updates of a region, after a checkpoint; default 3")
    found.add_argument("--regions", type=int, default=1, help="random regions; default 1")
    found.add_argument("--evaluation", action="store_true", help="also repeat the whole evaluation of the last update")
    found.add_argument("--seed", type=int, help="chooses regions and completions; default: random")
    return found


def verify_run(chosen: Namespace) -> Record:
    """Verifies, prints and writes the receipt."""
    for name in ("updates", "regions"):
        if getattr(chosen, name) < 1:
            raise ConfigError(f"--{name} {getattr(chosen, name)}: expected at least 1")
    # Imported here for a fast start-up: --help and command-line mistakes need no torch.
    from postrain.jobs.replay import trusted_run  # noqa: PLC0415
    from postrain.jobs.verify import verify  # noqa: PLC0415

    run = trusted_run(chosen.run, chosen.confirm, "verify")
    seed = random.SystemRandom().randrange(2**32) if chosen.seed is None else chosen.seed
    found = verify(
        run,
        updates=chosen.updates,
        regions=chosen.regions,
        seed=seed,
        tell=lambda line: print(line, flush=True),
        evaluation=chosen.evaluation,
    )
    print("\n".join(lines(run, found)))
    print(written(run, found))
    return found


def written(run: RunFolder, found: Record) -> str:
    """Writes the receipt; returns a line with its path, or with the reason why it could not be written."""
    path = run.path / FILE
    try:
        atomic_write_text(path, json.dumps(plain(found), indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        return f"note: no receipt: cannot write {path}: {error.strerror or error}"
    return f"receipt {path}"


def lines(run: RunFolder, found: Record) -> list[str]:
    """The receipt for the console."""
    coverage, share = found["coverage"], found["share_of_run"]
    compared = [f"  {count:>11,}  {kind}" for kind, count in found["compared"].items()]
    took = f"{duration(found['seconds'])}" + (f", {share:.1%} of the run's time" if share else "")
    return [
        f"\n{'verified' if found['verdict'] == 'verified' else 'NOT VERIFIED'}: {run.path}",
        f"re-executed: {', '.join(found['re_executed'])} ({coverage['re_executed']} of {coverage['updates']} updates; "
        f"another seed could choose among {coverage['could_be_chosen']})",
        f"compared {found['comparison']}:",
        *compared,
        *(f"note: {note}" for note in found["notes"]),
        f"seed {found['seed']} · {took}",
        f"digest {found['digest']}",
        *(f"mismatch: {line}" for line in found["mismatches"]),
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
