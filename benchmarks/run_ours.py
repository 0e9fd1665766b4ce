"""One measurement of ours: a few updates of one method through train.py's own path. Run by against_trl.py.

The run is a user's run, with tracker, checkpoints and evaluation turned down. Three things differ: the clock around
each update and around the reference's pass over the data; that nothing ends a sampled completion early, since the
peer's PPO knows no end token either, and GRPO and RLOO disable early ends; and a separate cache, so that no earlier
process has computed anything for it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measure import Stopwatch

from postrain.cli.main import start
from postrain.methods.base import Method
from postrain.methods.reference_model import ReferenceModelMixin
from postrain.rollout.local import LocalEngine
from postrain.types import Stop

CONF = Path(__file__).resolve().parents[1] / "conf"
PPO = ["method.critic_warmup=0", "method.minibatches_per_epoch=1", "reward=learned", "method.micro_batch_tokens=8192"]
GROUPED = ["reward=function", f"reward.function={Path(__file__).with_name('vowel_reward.py')}:vowels"]
VARIANTS = {
    "sft": ["method=sft", "method.dropout=false"],
    "reward": ["method=reward"],
    "dpo": ["method=dpo", "method.precompute_ref_log_probs=false"],
    "dpo_cached": ["method=dpo", "method.precompute_ref_log_probs=true"],
    "kto": ["method=kto", "method.precompute_ref_log_probs=false"],
    "kto_cached": ["method=kto", "method.precompute_ref_log_probs=true"],
    "orpo": ["method=orpo"],
    "grpo": ["method=grpo", "method.loss_type=dapo", *GROUPED],
    "rloo": ["method=rloo", "method.kl_coef=0.05", *GROUPED],
    "ppo": ["method=ppo", "method.critic=separate", *PPO],
    "ppo_shared": ["method=ppo", "method.critic=shared", *PPO],
}


def main() -> None:
    """Measures, and writes JSON after the last update."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    for name in ("--model", "--reward-model", "--rows", "--out"):
        parser.add_argument(name, required=True)
    for name in ("--batch-size", "--updates", "--new-tokens", "--group-size", "--epochs", "--threads"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    stopwatch = Stopwatch()
    watch_updates(stopwatch, Path(args.out), args.updates)
    watch_pass(stopwatch)
    LocalEngine.generate = endless(LocalEngine.generate)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["POSTRAIN_CACHE"] = f"{scratch}/cache"
        code = start(["train.py", *overrides(args, scratch)], CONF)
    sys.exit(code)


def overrides(args: argparse.Namespace, scratch: str) -> list[str]:
    """The command line a user would give."""
    online = [f"method.epochs={args.epochs}", f"reward.path={args.reward_model}"]
    return [
        *VARIANTS[args.variant],
        *(online if args.variant.startswith("ppo") else []),
        *([f"method.group_size={args.group_size}"] if args.group_size > 1 else []),
        "model=local",
        f"model.path={args.model}",
        "data=jsonl",
        f"data.path={args.rows}",
        "data.template=plain",
        f"rollout.max_new_tokens={args.new_tokens}",
        f"method.batch_size={args.batch_size}",
        f"method.updates={args.updates}",
        f"trainer.threads={args.threads}",
        "trainer.checkpoint_every=1000000",
        "evaluation=quick",
        "evaluation.completions=0",
        "logger=none",
        f"paths.output={scratch}",
    ]


def watch_updates(stopwatch: Stopwatch, out: Path, updates: int) -> None:
    """Times every update, and writes the measurement down once the last one is over."""
    update = Method.training_step

    def timed(self: Method, batch: Any, batch_idx: int) -> None:
        stopwatch.start()
        update(self, batch, batch_idx)
        stopwatch.stop()
        if len(stopwatch.wall) == updates:
            stopwatch.write(out)

    Method.training_step = timed


def watch_pass(stopwatch: Stopwatch) -> None:
    """Times what a method with a reference does before its first update."""
    setup = ReferenceModelMixin.setup

    def timed(self: ReferenceModelMixin, stage: str) -> None:
        stopwatch.start()
        setup(self, stage)
        stopwatch.stop_pass()

    ReferenceModelMixin.setup = timed


def endless(generate: Any) -> Any:
    """The engine's `generate` without stop tokens."""

    def unstopped(engine: Any, model: Any, prompts: Any, *, seeds: Sequence[int], stop: Any) -> Any:
        return generate(engine, model, prompts, seeds=seeds, stop=Stop(()))

    return unstopped


if __name__ == "__main__":
    main()
