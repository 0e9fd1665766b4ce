"""Completions of the next update, sampled while the current one is learned (`rollout.overlap=1`).

An engine that keeps a copy of the weights (a vLLM server) samples in a thread. Any other samples at once, with the same
numbers: the seeds and the weights are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.rollout.engine import Engine, EngineLost, KeepsWeights
from postrain.rollout.environment import Environment
from postrain.rollout.turns import EnvironmentStats, Rollout, roll_out


@dataclass(frozen=True)
class Pending:
    """Rollouts that may still be sampled."""

    indices: tuple[int, ...]
    """Prompts of this rank, by their index in the global batch."""
    episodes: Future[list[Rollout]]
    """Of each prompt the same number, prompt-major."""


@dataclass
class SampledAhead:
    """The rollouts of updates that are not finished, by update."""

    pending: dict[int, Pending] = field(default_factory=dict)

    def start(
        self,
        update: int,
        indices: Sequence[int],
        engine: Engine,
        policy: nn.Module,
        template: Template,
        prompts: Prompts,
        *,
        seeds: Sequence[int],
        environment: Environment,
    ) -> None:
        """Samples from the policy's current weights; see `roll_out`. The main thread transfers the weights."""
        kept = engine.keep_weights(policy, prompts.ids) if isinstance(engine, KeepsWeights) else None

        def sample() -> list[Rollout]:
            try:
                return roll_out(kept or engine, policy, template, prompts, seeds=seeds, environment=environment)
            finally:
                if kept:
                    kept.release()

        # An update that fails is repeated from its own rollouts, so they stay until the next one has ended.
        self.pending = {number: kept for number, kept in self.pending.items() if number >= update - 1}
        self.pending[update] = Pending(tuple(indices), in_thread(sample) if kept else done(sample()))

    def take(self, update: int, indices: Sequence[int]) -> list[Rollout] | None:
        """The rollouts of these prompts; None if there are none. Waits until they are sampled."""
        found = self.pending.get(update)
        if found is None or found.indices != tuple(indices):
            return None
        try:
            return found.episodes.result()
        except EngineLost as lost:
            print(f"note: {lost}; update {update + 1} is sampled again, from the current policy", file=sys.stderr)
            return None

    def state(self, update: int) -> dict[str, Any]:
        """The rollouts of an update over all ranks as plain containers, by the index of their prompt; {} without any.

        All ranks must call it.
        """
        own: dict[int, list[dict[str, Any]]] = {}
        found = self.pending.get(update)
        if found is not None:
            try:
                episodes = found.episodes.result()
                size = len(episodes) // len(found.indices)
                for at, index in enumerate(found.indices):
                    own[index] = [to_plain(episode) for episode in episodes[at * size : (at + 1) * size]]
            except ConfigError:
                own = {}  # `take` reports it in the next update
        parts = collectives.gather(own)
        return {"update": update, "prompts": {k: v for part in parts for k, v in part.items()}} if all(parts) else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restores the output of `state` for this rank, with any number of ranks."""
        self.pending = {}
        world, rank = collectives.world_size(), collectives.rank()
        indices = tuple(sorted(index for index in state.get("prompts", ()) if index % world == rank))
        if indices:
            episodes = [from_plain(episode) for index in indices for episode in state["prompts"][index]]
            self.pending[state["update"]] = Pending(indices, done(episodes))


def in_thread(sample: Callable[[], list[Rollout]]) -> Future[list[Rollout]]:
    """The result of a function that runs in a thread of its own."""
    pool = ThreadPoolExecutor(1, "rollout")
    future = pool.submit(sample)
    pool.shutdown(wait=False)
    return future


def done(episodes: list[Rollout]) -> Future[list[Rollout]]:
    """A finished result."""
    future: Future[list[Rollout]] = Future()
    future.set_result(episodes)
    return future


def to_plain(episode: Rollout) -> dict[str, Any]:
    """A finished episode without the environment's state, which nothing reads any more."""
    tensors = {name: getattr(episode, name).clone() for name in ("ids", "policy_mask", "logps")}
    further = {name: getattr(episode, name) for name in ("finished", "turn_tokens", "turn_rewards", "last_message")}
    return {**tensors, **further, "stats": asdict(episode.stats)}


def from_plain(saved: Mapping[str, Any]) -> Rollout:
    """The output of `to_plain` as an episode."""
    tensors: dict[str, torch.Tensor] = {name: saved[name].cpu() for name in ("ids", "policy_mask", "logps")}
    stats = EnvironmentStats(**saved["stats"])
    turns = {name: tuple(saved[name]) for name in ("turn_tokens", "turn_rewards")}
    ended = {"finished": saved["finished"], "open": False, "last_message": saved["last_message"]}
    return Rollout(**tensors, state=None, **turns, **ended, stats=stats)
