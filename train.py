"""The entry point: `python train.py method=ppo`, `python train.py --help`."""

import os
import sys

# Before torch is imported: threads that spin while they wait make every step many times slower as soon as anything else
# uses the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from postrain.cli.main import start

if __name__ == "__main__":
    sys.exit(start(sys.argv))
