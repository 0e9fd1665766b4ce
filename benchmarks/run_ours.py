"""Measures postrain: a few updates of one method through the code path of train.py. Run by against_trl.py.

The run is an ordinary training run with logger, checkpoints and evaluation reduced. It differs in three points: updates
and the reference pass are timed; sampled completions have no stop tokens, as in TRL's PPO and in the benchmark's
settings of TRL's GRPO and RLOO; the disk cache is empty.
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
    "distill": ["method=distill"],
    "online_dpo": ["method=online_dpo", *GROUPED],
    "nash_md": ["method=nash_md", "method.group_size=1", "reward=learned"],
    "prm": ["method=prm"],
    "ppo": ["method=ppo", "method.critic=separate", *PPO],
    "ppo_shared": ["method=ppo", "method.critic=shared", *PPO],
}


def main() -> None:
    """Run the updates; the measurement is written as JSON after the last one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=VARIANTS, required=True)
    for name in ("--model", "--reward-model", "--rows", "--out", "--precision"):
        parser.add_argument(name, required=True)
    for name in ("--batch-size", "--updates", "--new-tokens", "--group-size", "--epochs", "--threads"):
        parser.add_argument(name, type=int, required=True)
    args = parser.parse_args()
    stopwatch = Stopwatch()
    time_updates(stopwatch, Path(args.out), args.updates)
    time_reference_pass(stopwatch)
    LocalEngine.generate = without_stop_tokens(LocalEngine.generate)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["POSTRAIN_CACHE"] = f"{scratch}/cache"
        code = start(["train.py", *overrides(args, scratch)], CONF)
    sys.exit(code)


def overrides(args: argparse.Namespace, scratch: str) -> list[str]:
    """The config overrides of the run."""
    scored = args.variant.startswith("ppo") or args.variant == "nash_md"
    return [
        *VARIANTS[args.variant],
        *([f"reward.path={args.reward_model}"] if scored else []),
        *([f"method.epochs={args.epochs}"] if args.variant.startswith("ppo") else []),
        # The teacher is a second copy of the model: its weights do not change the time.
        *([f"teacher={args.model}"] if args.variant == "distill" else []),
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
        f"trainer.precision={args.precision}",
        "trainer.checkpoint_every=1000000",
        "evaluation=quick",
        "evaluation.completions=0",
        "logger=none",
        f"paths.output={scratch}",
    ]


def time_updates(stopwatch: Stopwatch, out: Path, updates: int) -> None:
    """Patch the training step to time every update and to write the measurement after the last one."""
    update = Method.training_step

    def timed(self: Method, batch: Any, batch_idx: int) -> None:
        stopwatch.start()
        update(self, batch, batch_idx)
        stopwatch.stop()
        if len(stopwatch.wall) == updates:
            stopwatch.write(out)

    Method.training_step = timed


def time_reference_pass(stopwatch: Stopwatch) -> None:
    """Patch the setup of methods with a reference model to time the pass before the first update."""
    setup = ReferenceModelMixin.setup

    def timed(self: ReferenceModelMixin, stage: str) -> None:
        stopwatch.start()
        setup(self, stage)
        stopwatch.stop_pass()

    ReferenceModelMixin.setup = timed


def without_stop_tokens(generate: Any) -> Any:
    """The engine's `generate` without stop tokens."""

    def generate_without_stop(engine: Any, model: Any, prompts: Any, *, seeds: Sequence[int], stop: Any) -> Any:
        return generate(engine, model, prompts, seeds=seeds, stop=Stop(()))

    return generate_without_stop


if __name__ == "__main__":
    main()
