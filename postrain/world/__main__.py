"""Prints rows of the world as JSONL: python -m postrain.world --kind preferences --task instructions --count 5."""

from __future__ import annotations

import json
import sys
from typing import get_args

from postrain.config.paths import command
from postrain.errors import ConfigError, Parser, ignore_closed_pipe, print_error
from postrain.world.items import Split
from postrain.world.rows import NOISE, Kind, Task, rows


def main() -> int:
    """Prints the rows; exit code 2 and one line for an invalid choice."""
    parser = Parser(prog=command("world"), description="Prints rows of the world as JSONL.")
    parser.add_argument("--kind", default="text", choices=get_args(Kind))
    parser.add_argument("--task", default="stories", choices=get_args(Task))
    parser.add_argument("--count", default=5, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--split", default="train", choices=get_args(Split))
    parser.add_argument("--noise", default=NOISE, type=float, help="annotator temperature")
    try:
        chosen = parser.parse_args()
        chosen_rows = rows(
            chosen.kind, task=chosen.task, count=chosen.count, seed=chosen.seed, split=chosen.split, noise=chosen.noise
        )
    except ConfigError as error:
        return print_error(error)
    try:
        for row in chosen_rows:
            print(json.dumps(row, ensure_ascii=False))
        sys.stdout.flush()
    except BrokenPipeError:
        return ignore_closed_pipe()
    return 0


if __name__ == "__main__":
    sys.exit(main())
