"""The entry point: `python train.py method=ppo`, `python train.py --help`."""

import sys
from pathlib import Path

from postrain.main import start

if __name__ == "__main__":
    sys.exit(start(sys.argv, Path(__file__).parent / "conf"))
