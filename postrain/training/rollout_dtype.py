"""`rollout.dtype=auto`: measures rollouts of this run in each precision before the first one, and keeps the fastest.

The choice takes the place of `auto` in the run's components and in its config.yaml and manifest.json. The run is from
then on the same as one with this precision on the command line, and so are its resumed sessions, forks and replays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from postrain.config.tree import replace_key
from postrain.hardware import collectives
from postrain.methods.online import Online
from postrain.models.reference import in_eval_mode
from postrain.models.scoring import score
from postrain.rollout.decode.timing import fastest
from postrain.rollout.local import LocalEngine, threads_for
from postrain.training.components import Components
from postrain.training.config import TrainConfig
from postrain.types import Rows

MARGIN = 1.15
"""A lower precision is chosen if a rollout takes longer by this factor in the policy's."""
PROBE_TOKENS = 128
"""Completion tokens whose log-probabilities are timed."""


@dataclass(frozen=True)
class Measured:
    """CPU seconds of one rollout of this rank."""

    rows: int
    tokens: int
    """Of each completion."""
    sampling: Mapping[str, float]
    """By precision, the policy's first; {} if that is the only one."""
    rescoring: float
    """Of recomputing old log-probabilities, for other precisions than the policy's; 0 where that costs nothing."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by precision, old log-probabilities included."""
        return {name: taken + (name != "policy") * self.rescoring for name, taken in self.sampling.items()}

    @property
    def fastest(self) -> str:
        """The policy's precision, unless another one is faster by MARGIN."""
        seconds = self.seconds
        best = min(seconds, key=seconds.__getitem__, default="policy")
        return best if seconds and seconds["policy"] >= MARGIN * seconds[best] else "policy"

    def reason(self) -> str:
        """For the console."""
        if not self.sampling:
            return "no other precision is faster with this model and processor"
        times = ", ".join(f"{name} {taken:.2g}" for name, taken in self.seconds.items())
        line = f"CPU-s of {self.rows} completions of {self.tokens} tokens: {times}"
        return (
            f"{line}, without policy {self.rescoring:.2g} of it for old log-probabilities" if self.rescoring else line
        )


def settle_rollout_dtype(config: TrainConfig, components: Components) -> list[str]:
    """Replaces `rollout.dtype=auto` by the same precision on all ranks; returns the line of the console, if any."""
    if not isinstance(config.rollout, LocalEngine) or config.rollout.dtype != "auto":
        return []
    if reason := without_measuring(config):
        chosen = "policy"
    else:
        found = collectives.gather(measured(config, components) if collectives.rank() == 0 else None)[0]
        assert found is not None
        chosen, reason = found.fastest, found.reason()
    replace_key(config, "rollout", "dtype", chosen)
    components.method.components = replace(components.method.components, engine=config.rollout)
    return [f"rollout.dtype {chosen} (auto): {reason}"]


def without_measuring(config: TrainConfig) -> str:
    """The reason to take the policy's precision without measuring; empty otherwise."""
    if not config.method.samples:
        return "this method samples in evaluations only"
    if config.trainer.device.type != "cpu":
        return "rollouts on a GPU run in the policy's precision"
    return "sharded models have no other" if config.trainer.strategy == "fsdp" else ""


def measured(config: TrainConfig, components: Components) -> Measured:
    """Measures a rollout of held-out prompts, as many as this rank has in an update, whose completions have half of
    rollout.max_new_tokens."""
    method, engine = components.method, config.rollout
    assert isinstance(method, Online)
    assert isinstance(engine, LocalEngine)
    prompts = components.data.eval_prompts(method.batch_size).ids
    local, each = max(1, method.batch_size // collectives.world_size()), getattr(method, "group_size", 1)
    rows = [prompts[index % len(prompts)] for index in range(local) for _ in range(each)]
    tokens = max(1, engine.max_new_tokens // 2)
    with config.trainer.autocast():
        times = engine.decode_times(method.policy, rows)
        rescores = times and method.recomputes_logps()
        rescoring = len(rows) * scoring_time(method.policy, rows[0], each, tokens) if rescores else 0.0
    steps = tokens * -(-len(rows) // engine.batch_rows)
    return Measured(len(rows), tokens, {name: taken.total(steps) for name, taken in times.items()}, rescoring)


@torch.no_grad()
def scoring_time(policy: nn.Module, prompt: Tensor, each: int, tokens: int) -> float:
    """CPU seconds of the log-probabilities of one of `each` completions behind a prompt."""
    count, length = max(1, min(each, PROBE_TOKENS // tokens)), min(tokens, 4 * PROBE_TOKENS)
    ids = torch.cat([prompt, prompt[-1:].expand(length)])
    rows = Rows((ids,) * count, (torch.arange(len(ids)) >= len(prompt),) * count, (0,) * count)
    with in_eval_mode(policy), threads_for(policy):
        score(policy, rows.select([0]))  # the first pass checks how the model can be packed
        return fastest(lambda: score(policy, rows)) / count * tokens / length
