"""python -m docs.generator OUTPUT: writes the expanded pages and images of docs/ to a directory."""

import sys
from pathlib import Path

from docs.generator.logged import logged_metrics
from docs.generator.maths import with_mathml
from docs.generator.pages import write

if __name__ == "__main__":
    write(Path(sys.argv[1]), logged=logged_metrics, finish=with_mathml)
