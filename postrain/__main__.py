"""python -m postrain: the same as the command postrain."""

import sys

from postrain.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv))
