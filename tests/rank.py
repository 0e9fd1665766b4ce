"""Two ranks of a process group that train every method once; started by tests/hardware/test_ranks.py.

The second rank is a fork of the first: importing and composing take longer than training.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch.distributed as dist

from postrain.hardware.ranks import init_process_group
from postrain.jobs.session import TRAIN, execute
from postrain.runs.folder import RunFolder
from postrain.training import train  # noqa: F401 (before the fork: all of torch, transformers and Lightning)
from tests.training_runs import METHODS, SMALL, composed, resumed

# Two updates: the second is the first that depends on an optimizer step.
TWO_UPDATES = ("method.updates=2", "trainer.checkpoint_every=2")
# Learning rates that do not depend on the number of updates.
CONSTANT = ("method.schedule=constant", "method.warmup=0")
# Runs that shard the policy, by name. The odd batch in small micro-batches gives the ranks different pass counts.
SHARDED = {
    "sharded": ["method=ppo", *CONSTANT],
    "ragged": [
        "method=kto",
        "method.batch_size=7",
        "method.micro_batch_tokens=100",
        "method.gradient_checkpointing=true",
    ],
    "adapted": ["method=dpo", "adapter=lora", "method.precompute_ref_log_probs=false"],
    # The reference is a second adapter, beside base weights that PiSSA has changed.
    "pissa": ["method=dpo", "adapter=pissa", "adapter.r=4", "method.precompute_ref_log_probs=false"],
}
FSDP = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=fp32")

# 127.0.0.1, ::1 and ::ffff:127.0.0.1, as /proc/net writes them.
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
LISTENS = "0A"


def listening() -> list[str]:
    """The addresses at which this process listens, in the kernel's hexadecimal."""
    links: list[str] = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of the listing is closed
            links.append(os.readlink(descriptor))
    own = {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:")}
    files = [Path("/proc/net", name) for name in ("tcp", "tcp6")]
    rows = [line.split() for file in files if file.is_file() for line in file.read_text().splitlines()[1:]]
    return [row[1].partition(":")[0] for row in rows if row[3] == LISTENS and row[9] in own]


def main(output: Path) -> None:
    """Runs all methods, one after another, in one group."""
    configs = [composed([*SMALL, *TWO_UPDATES, *words, f"paths.output={output}"]) for words in all_runs()]
    second = os.fork() == 0
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), str(int(second)))
    init_process_group("gloo")
    dist.barrier()
    (output / f"listening-{dist.get_rank()}.json").write_text(json.dumps(listening()))
    for config in configs:
        execute(TRAIN, config, overrides=[], group=None)
    # The test put it there: the first two updates of one process.
    (unsharded,) = output.glob("unsharded/*/*")
    words = ("trainer.strategy=fsdp", "trainer.devices=2", "method.updates=3", "allow_change=true")
    resumed(RunFolder(unsharded), *words)
    dist.destroy_process_group()
    if not second:
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))


def all_runs() -> Iterator[list[str]]:
    """The words of each run."""
    yield from ([f"method={method}", "trainer=ddp_cpu", f"name={method}"] for method in METHODS)
    yield from ([*words, *FSDP, f"name={name}"] for name, words in SHARDED.items())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
