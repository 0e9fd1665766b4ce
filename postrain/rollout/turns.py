"""Multi-turn rollouts: policy and environment alternate until an end token, the environment or a limit ends it.

A text environment continues the policy's text at a stop text. A message environment (postrain.environments) answers a
message that ended with an end token, by messages that the model's chat template renders. Observations are part of the
row and are masked out of the loss. Sampled tokens are never decoded and encoded again, so that training sees exactly
what was sampled.

L tokens of an episode after its prompt, T tokens of it that the policy wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.environments.base import MessageEnvironment
from postrain.errors import ConfigError
from postrain.rewards.function import is_finite, preview
from postrain.rollout.engine import Engine, Mixture
from postrain.rollout.environment import Environment
from postrain.rollout.observations import Observation, Turn, blame, observe
from postrain.seeds import derive_seed
from postrain.types import Completion, Stop


@dataclass(frozen=True)
class EnvironmentStats:
    """Counts of an episode."""

    turns: int = 0
    calls: int = 0
    """Turns passed to a text environment; tool calls of a message environment."""
    errors: int = 0
    """Malformed or failed calls, and invalid actions."""
    cut: int = 0
    """1 if an observation exceeded `max_observation_tokens`: it was dropped and ended the episode."""
    own: Mapping[str, float] = field(default_factory=dict)
    """The environment's own numbers of the episode; see `MessageEnvironment.metrics`."""

    def numbers(self) -> dict[str, float]:
        """All of them by name."""
        return {"turns": self.turns, "calls": self.calls, "errors": self.errors, "cut": self.cut, **self.own}


@dataclass(frozen=True)
class Rollout:
    """The tokens after one prompt: turns of the policy and observations."""

    ids: Tensor
    """Every token after the prompt; int64 [L]."""
    policy_mask: Tensor
    """True at tokens of the policy; bool [L]."""
    logps: Tensor
    """Log-probability of each token of the policy, float32 [T]."""
    state: Any
    """State of the environment."""
    finished: bool = False
    """True if an end token, a stop text of the engine or the environment ended it."""
    open: bool = True
    """True until the episode ends."""
    turn_tokens: tuple[int, ...] = ()
    """The policy's tokens in each turn."""
    turn_rewards: tuple[float, ...] = ()
    """The environment's reward of each turn."""
    last_message: str = ""
    """Text of the policy's last turn; empty if the environment answered it without ending the episode."""
    stats: EnvironmentStats = EnvironmentStats()

    @property
    def reward(self) -> float:
        """Sum of the environment's rewards."""
        return float(sum(self.turn_rewards))

    def policy_tokens(self) -> int:
        """Number of tokens of the policy."""
        return len(self.logps)


def roll_out(
    engine: Engine,
    policy: nn.Module | Mixture,
    template: Template,
    prompts: Prompts,
    *,
    seeds: Sequence[int],
    environment: Environment,
) -> list[Rollout]:
    """One episode per prompt. `max_new_tokens` limits the policy's tokens over all turns of an episode.

    The seed of a turn depends on the row's seed and the turn's number alone: rows are independent of
    each other, and the first turn is the same without an environment.
    """
    budget = engine.sampling.max_new_tokens
    stop = Stop(template.stop_ids, engine.sampling.stop + environment.stop, template.decode_all)
    with blame(environment, "reset"):
        states = [environment.reset(*start) for start in zip(prompts.texts, prompts.columns, strict=True)]
    episodes = [_start(state) for state in states]
    heads = [ids.cpu() for ids in prompts.ids]
    for turn in range(environment.max_turns):
        live = [row for row, episode in enumerate(episodes) if episode.open]
        if not live:
            break
        completions = engine.generate(
            policy,
            [torch.cat([heads[row], episodes[row].ids]) for row in live],
            seeds=[seeds[row] if turn == 0 else derive_seed(seeds[row], "turn", turn) for row in live],
            stop=stop
            if turn == 0
            else replace(stop, limits=tuple(budget - episodes[row].policy_tokens() for row in live)),
        )
        turns = [
            Turn(episodes[row].state, completion, template.decode(completion.ids), prompts.row_ids[row])
            for row, completion in zip(live, completions, strict=True)
        ]
        for row, played, observation in zip(live, turns, observe(environment, template, turns), strict=True):
            episode = _with_turn(episodes[row], played.completion, played.message)
            if observation is None:
                episodes[row] = replace(episode, open=False)
                continue
            episode = _with_observation(episode, observation, environment.max_observation_tokens)
            episodes[row] = replace(episode, open=episode.open and episode.policy_tokens() < budget)
    return [_with_own_numbers(environment, episode) for episode in episodes]


def _start(state: Any) -> Rollout:
    nothing = torch.zeros(0)
    return Rollout(nothing.long(), nothing.bool(), nothing, state)


def _with_turn(episode: Rollout, completion: Completion, message: str) -> Rollout:
    """The episode with another turn of the policy."""
    if not len(completion.ids):
        raise ConfigError("rollout: the engine returned an empty completion; expected at least the end token")
    return replace(
        episode,
        ids=torch.cat([episode.ids, completion.ids]),
        policy_mask=torch.cat([episode.policy_mask, torch.ones(len(completion.ids), dtype=torch.bool)]),
        logps=torch.cat([episode.logps, completion.logps]),
        finished=completion.finished,
        turn_tokens=(*episode.turn_tokens, len(completion.ids)),
        turn_rewards=(*episode.turn_rewards, 0.0),
        last_message=message,
        stats=replace(episode.stats, turns=episode.stats.turns + 1),
    )


def _with_observation(episode: Rollout, found: Observation, limit: int) -> Rollout:
    """The episode with the environment's observation. One of more than `limit` tokens is dropped and ends the episode:
    a truncated number would be wrong."""
    stats = episode.stats
    stats = replace(stats, calls=stats.calls + found.calls, errors=stats.errors + found.errors)
    episode = replace(
        episode,
        state=found.state,
        turn_rewards=(*episode.turn_rewards[:-1], found.reward),
        last_message=episode.last_message if found.done else "",
        stats=stats,
    )
    if int((~episode.policy_mask).sum()) + len(found.ids) > limit:
        return replace(episode, finished=False, open=False, stats=replace(stats, cut=1))
    return replace(
        episode,
        ids=torch.cat([episode.ids, found.ids]),
        policy_mask=torch.cat([episode.policy_mask, torch.zeros(len(found.ids), dtype=torch.bool)]),
        finished=found.done,
        open=not found.done,
    )


def _with_own_numbers(environment: Environment, episode: Rollout) -> Rollout:
    """The ended episode with the numbers of a message environment. Raises ConfigError if they are not finite."""
    if not isinstance(environment, MessageEnvironment):
        return episode
    with blame(environment, "metrics"):
        own: Any = environment.metrics(episode.state)
    if not isinstance(own, Mapping) or not all(isinstance(name, str) and is_finite(own[name]) for name in own):
        raise ConfigError(
            f"environment {type(environment).__qualname__}: metrics returned {preview(own)}; expected finite numbers "
            "by name"
        )
    return replace(episode, stats=replace(episode.stats, own={name: float(value) for name, value in own.items()}))
