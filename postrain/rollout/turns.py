"""Multi-turn rollouts: policy and environment alternate until an end token, the environment or a limit ends it.

An environment maps text to text, deterministically, without tokens. Its observations are part of the row and are masked
out of the loss. Sampled tokens are never decoded and encoded again, so that training sees exactly what was sampled.
Not supported: observations after a finished message (an end token always ends the episode).

L tokens of an episode after its prompt, T tokens of it that the policy wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.rewards.function import is_finite, preview
from postrain.rewards.user_code import UserCodeErrors, source_location
from postrain.rollout.engine import Engine, Mixture
from postrain.seeds import derive_seed
from postrain.types import Completion, Count, CountOrZero, Step, Stop


class Environment(Protocol):
    """Answers the turns of the policy, with pure functions of state and text."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop texts that pass the turn to the environment; they stay part of the policy's turn."""
        ...

    @property
    def max_turns(self) -> Count:
        """Maximum number of turns of the policy."""
        ...

    @property
    def max_observation_tokens(self) -> CountOrZero:
        """Maximum tokens of all observations of an episode, in addition to the policy's `max_new_tokens`."""
        ...

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Any:
        """The initial state of an episode; `columns` are the other columns of the prompt's record."""
        ...

    def step(self, state: Any, turn: str) -> Step:
        """The answer to a turn that ended with one of `stop`."""
        ...


class SingleTurn:
    """No environment: the policy writes once."""

    stop: tuple[str, ...] = ()
    max_turns: Count = 1
    max_observation_tokens: CountOrZero = 0

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> None:
        """No state."""

    def step(self, state: Any, turn: str) -> Step:
        """Never called: there is no stop text."""
        return Step("", state, done=True)


SINGLE_TURN = SingleTurn()


@dataclass(frozen=True)
class EnvironmentStats:
    """Counts of an episode."""

    turns: int = 0
    calls: int = 0
    """Turns passed to the environment."""
    errors: int = 0
    """Malformed calls among them."""
    cut: int = 0
    """1 if an observation exceeded `max_observation_tokens`: it was dropped and ended the episode."""


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
    reward: float = 0.0
    """Sum of the environment's rewards."""
    stats: EnvironmentStats = EnvironmentStats()

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
    with _blame(environment):
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
        for row, completion in zip(live, completions, strict=True):
            episode = _with_turn(episodes[row], completion)
            text = template.decode_all(completion.ids.tolist())
            if completion.finished and _calls_environment(completion, text, template.stop_ids, environment.stop):
                episode = _with_observation(
                    episode, _step(environment, episode.state, text), template, environment.max_observation_tokens
                )
                episodes[row] = replace(episode, open=episode.open and episode.policy_tokens() < budget)
            else:
                episodes[row] = replace(episode, open=False)
    return episodes


def _blame(environment: Environment) -> UserCodeErrors:
    file, _ = source_location(type(environment).step)
    return UserCodeErrors(f"environment {type(environment).__qualname__} raised", file)


def _step(environment: Environment, state: Any, turn: str) -> Step:
    """The observation of a turn. Raises ConfigError for invalid ones: an environment may be a user's class."""
    with _blame(environment):
        step: Any = environment.step(state, turn)
    well = isinstance(step, Step) and isinstance(step.observation, str)
    if not well or not (step.reward is None or is_finite(step.reward)):
        raise ConfigError(
            f"environment {type(environment).__qualname__}: returned {preview(step)} for {turn[:60]!r}; expected a "
            "Step whose observation is text and whose reward is a finite number, or None"
        )
    return step


def _start(state: Any) -> Rollout:
    nothing = torch.zeros(0)
    return Rollout(nothing.long(), nothing.bool(), nothing, state)


def _with_turn(episode: Rollout, completion: Completion) -> Rollout:
    """The episode with another turn of the policy."""
    if not len(completion.ids):
        raise ConfigError("rollout: the engine returned an empty completion; expected at least the end token")
    return replace(
        episode,
        ids=torch.cat([episode.ids, completion.ids]),
        policy_mask=torch.cat([episode.policy_mask, torch.ones(len(completion.ids), dtype=torch.bool)]),
        logps=torch.cat([episode.logps, completion.logps]),
        finished=completion.finished,
        stats=replace(episode.stats, turns=episode.stats.turns + 1),
    )


def _calls_environment(completion: Completion, text: str, end_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether a finished turn ended with a stop text of the environment, not with an end token."""
    ended = len(completion.ids) == 0 or int(completion.ids[-1]) in end_ids
    return not ended and any(handing in text for handing in stop)


def _with_observation(episode: Rollout, step: Step, template: Template, limit: int) -> Rollout:
    """The episode with the environment's observation. One of more than `limit` tokens is dropped and ends the episode:
    a truncated number would be wrong."""
    stats = replace(episode.stats, calls=episode.stats.calls + 1, errors=episode.stats.errors + step.error)
    episode = replace(episode, state=step.state, reward=episode.reward + float(step.reward or 0.0), stats=stats)
    answer = template.encode_continuation(step.observation)
    if int((~episode.policy_mask).sum()) + len(answer) > limit:
        return replace(episode, finished=False, open=False, stats=replace(stats, cut=1))
    return replace(
        episode,
        ids=torch.cat([episode.ids, answer]),
        policy_mask=torch.cat([episode.policy_mask, torch.zeros(len(answer), dtype=torch.bool)]),
        finished=step.done,
        open=not step.done,
    )
