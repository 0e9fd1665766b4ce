"""python -m postrain.report FOLDER... [--open] [--output DIRECTORY]: the report of any folder, or of several."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from postrain.config.places import command
from postrain.errors import ConfigError, Parser
from postrain.report import write_comparison, write_report

ABOUT = """Write report.html of a run, sweep, pipeline, evaluation or generation, finished or not, and its pictures
beside it. Several folders of runs, or of evaluations, are compared on one page."""


def main() -> int:
    """Exit code 2 and one line for a mistake."""
    parser = Parser(prog=command("report"), description=ABOUT)
    parser.add_argument("folder", type=Path, nargs="+", help="such as runs/ppo/nano/... or sweeps/kl_coef/...")
    parser.add_argument("--output", type=Path, help="where to write; otherwise into the folder itself")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    try:
        chosen = parser.parse_args()
        folders = list(dict.fromkeys(chosen.folder))
        page = (
            write_report(folders[0], chosen.output) if len(folders) == 1 else write_comparison(folders, chosen.output)
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    if chosen.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
