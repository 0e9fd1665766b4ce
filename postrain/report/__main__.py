"""python -m postrain.report FOLDER... [--format LIST] [--watch] [--open] [--output DIRECTORY]: reports of folders."""

from __future__ import annotations

import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from postrain.config.paths import command
from postrain.errors import ConfigError, Parser, print_error
from postrain.report import is_running, write_comparison, write_report
from postrain.report.export import TABLE_FORMATS
from postrain.report.page import RELOAD
from postrain.report.pictures import FORMATS

ABOUT = """Write report.html of a run, sweep, pipeline, evaluation or generation, finished or not, with its figures
beside it. Several folders of runs, or of evaluations, are compared on one page. A folder that holds runs gets an index
of all of them."""


def main() -> int:
    """Exit code 2 and one line for a mistake."""
    parser = Parser(prog=command("report"), description=ABOUT)
    parser.add_argument("folder", type=Path, nargs="+", help="runs/ppo/nano/... or sweeps/kl_coef/..., or runs for all")
    parser.add_argument("--output", type=Path, help="write there instead of into the folder itself")
    parser.add_argument(
        "--format", default="", metavar="LIST", help="also write figures (pdf,svg) and a table (csv,tex)"
    )
    parser.add_argument(
        "--watch", action="store_true", help="write it every few seconds while anything in it is running"
    )
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    try:
        chosen = parser.parse_args()
        folders, formats = list(dict.fromkeys(chosen.folder)), parse_formats(chosen.format)
        page = write(folders, chosen.output, formats)
        print(page, flush=True)
        if chosen.open:
            webbrowser.open(page.resolve().as_uri())
        while chosen.watch and any(map(is_running, folders)):
            time.sleep(RELOAD)
            write(folders, chosen.output, formats)
    except ConfigError as error:
        return print_error(error)
    except KeyboardInterrupt:
        return 130
    return 0


def write(folders: Sequence[Path], output: Path | None, formats: Sequence[str]) -> Path:
    """The report of one folder, or the comparison of several."""
    if len(folders) == 1:
        return write_report(folders[0], output, formats)
    return write_comparison(folders, output, formats)


def parse_formats(text: str) -> list[str]:
    """The formats in a list separated by commas. Raises ConfigError for an unknown one."""
    known, found = (*FORMATS, *TABLE_FORMATS), [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in found:
        if name not in known:
            raise ConfigError(f"--format: expected some of {','.join(known)}, got {name!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
