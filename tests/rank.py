"""One rank of a process group that runs every method once: what tests/test_ranks.py starts twice."""

import sys
from pathlib import Path

import torch.distributed as dist

from postrain import run as run_module
from tests.runs import METHODS, SMALL, composed

# Runs that shard the policy, by name. Odd batches in small pieces give the ranks different numbers of passes.
SHARDED = {
    "sharded": ["method=ppo"],
    "ragged": ["method=kto", "method.batch_size=7", "method.micro_batch_tokens=100"],
    "adapted": ["method=dpo", "adapter=lora", "method.reference_logps=fresh"],
}


def main(output: Path) -> None:
    """Runs all methods, one after another, in one group."""
    dist.init_process_group("gloo")
    for method in METHODS:
        run([f"method={method}", "trainer=ddp_cpu", f"name={method}"], output)
    for name, words in SHARDED.items():
        run([*words, "trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=fp32", f"name={name}"], output)
    dist.destroy_process_group()


def run(words: list[str], output: Path) -> None:
    """One small run of this rank."""
    run_module.execute(composed([*SMALL, *words, f"paths.output={output}"]), overrides=[], group=None)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
