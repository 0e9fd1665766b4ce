"""One rank of a process group that runs every method once: what tests/test_ranks.py starts twice."""

import sys
from pathlib import Path

import torch.distributed as dist

from postrain import run as run_module
from tests.runs import METHODS, SMALL, composed


def main(output: Path) -> None:
    """Runs all methods, one after another, in one group."""
    dist.init_process_group("gloo")
    for method in METHODS:
        overrides = [*SMALL, f"method={method}", "trainer=ddp_cpu", "trainer.checkpoint_every=1", f"name={method}"]
        run_module.execute(composed([*overrides, f"paths.output={output}"]), overrides=[], group=None)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
