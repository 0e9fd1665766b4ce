"""Ranks of a process group that train every method once; started by tests/hardware/test_ranks.py.

Ranks are forks of one process: importing and composing take longer than training.
"""

import gc
import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh

from postrain.errors import ConfigError
from postrain.evaluation.completions import reward_totals, sample_prompts
from postrain.hardware import collectives
from postrain.hardware.ranks import free_port, init_process_group, loopback_environment
from postrain.hardware.sharding import full_state_dict, shard
from postrain.hardware.shares import map_items
from postrain.jobs.session import TRAIN, execute
from postrain.methods.master_weights import MasterWeights
from postrain.models.sharded_loading import load_sharded
from postrain.models.weight_sync import merged_weights
from postrain.rollout.vllm_adapter import AdapterTransfer
from postrain.rollout.vllm_transfer import DiskTransfer
from postrain.runs.folder import RunFolder
from postrain.runs.status import remove_checkpoint
from postrain.training import train  # noqa: F401 (before the fork: all of torch, transformers and Lightning)
from postrain.types import RewardBatch
from tests import fast_compose, shared_models
from tests.evaluation.fake_eval_model import eval_model, make_prompts
from tests.models.test_weight_sync import adapted
from tests.tiny import tiny_model
from tests.training_runs import METHODS, SMALL, composed, resumed, shallow, with_teacher

# Two ranks cannot divide these into equal shares.
UNEVEN = ("data.eval_rows=7", "evaluation.completions=3")
# Two updates: the second is the first that depends on an optimizer step.
TWO_UPDATES = ("method.updates=2", "trainer.checkpoint_every=2", *UNEVEN)
TASKS = [
    *(f"+evaluation/task@evaluation.tasks.{name}={name}" for name in ("forgetting", "kl", "queries", "win_rate")),
    "evaluation.tasks.forgetting={texts: 3, facts: 3}",
    "evaluation.tasks.queries={categories: [factual], phrasings: 1, max_new_tokens: 4}",
    "evaluation.tasks.win_rate={against: nano, prompts: 3}",
]
# Learning rates that do not depend on the number of updates.
CONSTANT = ("method.schedule=constant", "method.warmup=0")
EVERY = ("trainer.checkpoint_every=1",)
# Runs that shard the policy, by name. The odd batch in small micro-batches gives the ranks different pass counts.
SHARDED = {
    "sharded": ["method=ppo", *EVERY, *CONSTANT],
    "ragged": [
        "method=kto",
        "method.batch_size=7",
        "method.micro_batch_tokens=100",
        "method.gradient_checkpointing=true",
    ],
    "adapted": ["method=dpo", "adapter=lora", "method.precompute_ref_log_probs=false", *TASKS],
    "moving": ["method=dpo", "method.precompute_ref_log_probs=false", "method.ref_sync_steps=1", *EVERY],
    # The ranks have different numbers of micro-batches.
    "auto": ["method=sft", "method.learning_rate=auto", "method.micro_batch_tokens=60"],
    # The reference is a second adapter, beside base weights that PiSSA has changed. One held-out row for two ranks.
    "pissa": [
        "method=dpo",
        "adapter=pissa",
        "adapter.r=4",
        "method.precompute_ref_log_probs=false",
        "data.eval_rows=1",
    ],
}
# They shard both layers of the bundled model; the others its first, in half the time.
WHOLE_MODEL = ("sharded", "adapted")
FSDP = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=fp32")
# Two copies of two shards each (HSDP); the ranks have one to three micro-batches.
UNEQUAL = ["method.batch_size=9", "method.micro_batch_tokens=20", "trainer.checkpoint_every=1", *CONSTANT]
HYBRID = [*FSDP, "trainer.devices=4", "trainer.shard_size=2", "name=hybrid"]

# 127.0.0.1, ::1 and ::ffff:127.0.0.1, as /proc/net writes them.
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
LISTENS = "0A"


def sharded(name: str) -> list[str]:
    """The overrides of a run in SHARDED."""
    method, *words = SHARDED[name]
    return [method, *words] if name in WHOLE_MODEL else [*shallow(method.removeprefix("method=")), *words]


def hybrid() -> list[str]:
    """The overrides of HYBRID's run by one process."""
    return [*shallow("kto"), *UNEQUAL]


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


def main() -> None:
    """Runs all methods, one after another, in a group of two ranks, then HYBRID in one of four.

    The process has imported this module without garbage collection, for the speed of forks as well.
    """
    gc.freeze()
    gc.enable()
    patched = pytest.MonkeyPatch()
    fast_compose.apply(patched)
    shared_models.apply(patched)
    output = Path(sys.argv[1])
    methods = ([*shallow(method), "trainer=ddp_cpu", f"name={method}"] for method in METHODS)
    shards = ([*sharded(name), *FSDP, f"name={name}"] for name in SHARDED)
    *two, four = (
        composed([*SMALL, *TWO_UPDATES, *with_teacher(each), f"paths.output={output}"])
        for each in (*methods, *shards, [*hybrid(), *HYBRID])
    )
    in_group(2, output, lambda: two_ranks(output, two))
    in_group(4, output, lambda: execute(TRAIN, four, overrides=[], group=None))


def in_group(size: int, output: Path, function: Callable[[], object]) -> None:
    """Calls the function in the ranks of a process group, which are forks of this process."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size), "NODE_RANK": "0"}
    shared |= loopback_environment(output / f"store-{size}")
    children: list[int] = []
    for rank in range(size):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            os.environ |= shared | dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank))
            init_process_group("gloo")
            dist.barrier()
            function()
            dist.destroy_process_group()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    ended = [os.waitpid(child, 0)[1] for child in children]
    if any(ended):
        sys.exit(1)


def two_ranks(output: Path, configs: Sequence[dict[str, Any]]) -> None:
    """All runs of two ranks, and checks of single functions."""
    (output / f"listening-{dist.get_rank()}.json").write_text(json.dumps(listening()))
    for config in configs:
        execute(TRAIN, config, overrides=[], group=None)
    # The test put it there: the first two updates of one process.
    (unsharded,) = output.glob("unsharded/*/*")
    words = ("trainer.strategy=fsdp", "trainer.devices=2", "method.updates=3", "allow_change=true")
    resumed(RunFolder(unsharded), *words)
    resume_sharded(output, "sharded")
    resume_sharded(output, "moving")
    check_loading(output)
    check_transfers()
    check_shares()
    check_missing_gradients()


def resume_sharded(output: Path, name: str) -> None:
    """Resumes a copy of a sharded run from its first checkpoint."""
    (whole,) = output.glob(f"{name}/*/*")
    killed = output / f"killed-{name}" / Path(*whole.parts[-2:])
    if dist.get_rank() == 0:
        shutil.copytree(whole, killed)
        remove_checkpoint(killed / "checkpoints" / "update=000002.ckpt")
    dist.barrier()
    resumed(RunFolder(killed))


def check_loading(output: Path) -> None:
    """Compares a model whose slices the ranks read with the model; its 61 embeddings do not divide into two."""
    model = tiny_model("gemma3")
    source: Any = SimpleNamespace(directory=output / "tiny", name="tiny", loads_as="")
    vars(source).update(adapters=(), resize=False, from_scratch=False)
    if dist.get_rank() == 0:
        model.save_pretrained(source.directory)
    dist.barrier()
    change = partial(shard, mesh=init_device_mesh("cpu", (2,)))
    found = load_sharded(source, "causal", dtype=torch.float32, shard=change)
    assert found is not None
    rows = found.model.embed_tokens.weight.to_local().shape[0]
    assert rows == (31, 30)[dist.get_rank()]
    assert all(each.equal(model.state_dict()[name]) for name, each in full_state_dict(found).items())


def check_transfers() -> None:
    """Compares the weights of a sharded policy with those that the first rank sends to a vLLM server."""
    whole, sharded = adapted("gpt2"), adapted("gpt2")
    merged, lora = dict(merged_weights(whole)), {k: v for k, v in whole.state_dict().items() if "lora_" in k}
    with whole.disable_adapter():
        base = dict(merged_weights(whole))
    shard(sharded, init_device_mesh("cpu", (2,)), torch.bfloat16)
    sent: list[dict[str, torch.Tensor]] = []

    def request(path: str, body: dict[str, Any]) -> None:
        folder = Path(body["lora_path"] if "lora_path" in body else body["kwargs"]["weights_path"])
        (file,) = folder.glob("*.safetensors")
        sent.append(load_file(file))

    servers: Any = SimpleNamespace(request=request)
    transfer = DiskTransfer(servers, None, torch.float32)
    transfer.send(sharded, "1", fresh=True)
    assert AdapterTransfer(servers, transfer, None).send(sharded, "2", fresh=True) == "postrain-2"
    expected = [merged, base, {name.replace(".default", ""): each for name, each in lora.items()}]
    assert len(sent) == (3 if dist.get_rank() == 0 else 0)
    for theirs, mine in zip(sent, expected, strict=False):
        assert theirs.keys() == mine.keys()
        assert all(each.equal(mine[name]) for name, each in theirs.items())


class Recorder:
    """A reward that keeps the prompts of its completions; the n-th of a call gets n."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def to(self, device: Any) -> None:
        """No weights."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], columns: Any) -> RewardBatch:
        self.called.extend(prompts)
        return RewardBatch(torch.arange(len(prompts)).float(), {})


def check_shares() -> None:
    """A reward is called once for each completion, also where both ranks sample; a ConfigError reaches both ranks."""
    for count in (1, 3):
        reward, prompts = Recorder(), make_prompts(count)
        rollouts = sample_prompts(eval_model([(5, 0)], prompts, reward=reward), prompts)
        assert rollouts.prompts == prompts.texts
        assert reward_totals(reward, prompts, rollouts.completions) == [0.0, 0.0, 1.0][:count]
        assert sorted(chain(*collectives.gather(reward.called))) == sorted(prompts.texts * 2)
    assert map_items(1, lambda items: [*items], together=False) == [0]

    def fail_on_second(items: range) -> list[int]:
        if collectives.rank() == 1:
            raise ConfigError("no such column")
        return [*items]

    with pytest.raises(ConfigError, match="no such column"):
        map_items(2, fail_on_second)


def check_missing_gradients() -> None:
    """The sum of float32 gradients of bf16 parameters, where the first rank has none; 2⁻⁹ would be lost in bf16."""
    parameter = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    MasterWeights(partial(torch.optim.SGD, lr=1.0), [{"params": [parameter]}])
    if collectives.rank() == 1:
        parameter.grad = torch.full((3,), 1 + 2**-9)
    collectives.sum_gradients([parameter])
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [1 + 2**-9] * 3
