"""python -m postrain.report RUN_FOLDER [--open]: write the report of a run anew, finished or not."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from postrain.report.build import write_report


def main() -> int:
    """Exit code 2 and one line for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m postrain.report", description="Write report.html of a run.")
    parser.add_argument("run", type=Path, help="a run folder, such as runs/ppo/nano/...")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    chosen = parser.parse_args()
    if not chosen.run.is_dir():
        print(f"there is no folder {chosen.run}; give a run folder, such as runs/ppo/nano/...", file=sys.stderr)
        return 2
    try:
        page = write_report(chosen.run)
    except OSError as error:
        print(f"cannot write the report into {chosen.run}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(page)
    if chosen.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
