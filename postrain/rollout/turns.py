"""Turns: the policy writes, an environment answers, the policy goes on, until one of them is through.

An environment is text in, text out, and deterministic; it knows no tokens. What it answers stands in the row as the
policy read it and is not learned. Tokens are never decoded and encoded again, so that what is trained on is what was
sampled. Left out: environments that answer a finished message (an end token always ends the episode).

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
    """Answers the policy's turns; pure functions of state and text."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that hand the turn to the environment; they stay part of the policy's turn."""
        ...

    @property
    def max_turns(self) -> Count:
        """Turns the policy gets at most."""
        ...

    @property
    def room(self) -> CountOrZero:
        """Tokens of an episode that answers may fill, besides the policy's own `max_new_tokens`."""
        ...

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> Any:
        """The state at the start of an episode; `columns` is what else the prompt's record says."""
        ...

    def step(self, state: Any, turn: str) -> Step:
        """The answer to a turn that ended with one of `stop`."""
        ...


class SingleTurn:
    """No environment: the policy writes once."""

    stop: tuple[str, ...] = ()
    max_turns: Count = 1
    room: CountOrZero = 0

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> None:
        """Nothing to remember."""

    def step(self, state: Any, turn: str) -> Step:
        """Never asked, since nothing hands over."""
        return Step("", state, done=True)


SINGLE_TURN = SingleTurn()


@dataclass(frozen=True)
class EnvironmentStats:
    """What happened in an episode besides text."""

    turns: int = 0
    calls: int = 0
    """Turns handed to the environment."""
    errors: int = 0
    """Those of them it could not make sense of."""
    cut: int = 0
    """1 where an answer did not fit `room`: it was left out, and the episode ended there."""


@dataclass(frozen=True)
class Rollout:
    """What follows one prompt, as far as it has got."""

    ids: Tensor
    """Every token after the prompt; int64 [L]."""
    policy_mask: Tensor
    """True where the policy wrote it; bool [L]."""
    logps: Tensor
    """Log-probability of each token the policy wrote, float32 [T]."""
    state: Any
    """The environment's."""
    finished: bool = False
    """True when it ended by an end token, by the engine's stop texts or because the environment said so."""
    open: bool = True
    """True while there is more to write."""
    reward: float = 0.0
    """What the environment paid."""
    stats: EnvironmentStats = EnvironmentStats()

    def policy_tokens(self) -> int:
        """Tokens the policy wrote."""
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
    """One episode a prompt. `max_new_tokens` counts what the policy writes over all turns of an episode.

    The seed of a turn depends on the row's seed and the turn's number alone: a row does not depend on how many turns
    its neighbours need, and the first turn is what it would be without an environment.
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
            said = _said(episodes[row], completion)
            text = template.decode_all(completion.ids.tolist())
            if completion.finished and _hands_over(completion, text, template.stop_ids, environment.stop):
                said = _answered(said, _step(environment, said.state, text), template, environment.room)
                episodes[row] = replace(said, open=said.open and said.policy_tokens() < budget)
            else:
                episodes[row] = replace(said, open=False)
    return episodes


def _blame(environment: Environment) -> UserCodeErrors:
    file, _ = source_location(type(environment).step)
    return UserCodeErrors(f"environment {type(environment).__qualname__} raised", file)


def _step(environment: Environment, state: Any, turn: str) -> Step:
    """The answer to a turn. Raises ConfigError for what is not one: an environment may be a user's own class."""
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


def _said(episode: Rollout, completion: Completion) -> Rollout:
    """The episode with another turn of the policy."""
    if not len(completion.ids):
        raise ConfigError("rollout: the engine gave back a completion without a token, not even the one that ended it")
    return replace(
        episode,
        ids=torch.cat([episode.ids, completion.ids]),
        policy_mask=torch.cat([episode.policy_mask, torch.ones(len(completion.ids), dtype=torch.bool)]),
        logps=torch.cat([episode.logps, completion.logps]),
        finished=completion.finished,
        stats=replace(episode.stats, turns=episode.stats.turns + 1),
    )


def _hands_over(completion: Completion, text: str, end_ids: Sequence[int], stop: Sequence[str]) -> bool:
    """Whether a turn that ended by itself ended for the environment: not by an end token, but by one of its texts."""
    ended = len(completion.ids) == 0 or int(completion.ids[-1]) in end_ids
    return not ended and any(handing in text for handing in stop)


def _answered(episode: Rollout, step: Step, template: Template, room: int) -> Rollout:
    """The episode with the environment's answer. One that does not fit is left out and ends the episode: half a number
    would be a wrong one."""
    stats = replace(episode.stats, calls=episode.stats.calls + 1, errors=episode.stats.errors + step.error)
    episode = replace(episode, state=step.state, reward=episode.reward + float(step.reward or 0.0), stats=stats)
    answer = template.encode_continuation(step.observation)
    if int((~episode.policy_mask).sum()) + len(answer) > room:
        return replace(episode, finished=False, open=False, stats=replace(stats, cut=1))
    return replace(
        episode,
        ids=torch.cat([episode.ids, answer]),
        policy_mask=torch.cat([episode.policy_mask, torch.zeros(len(answer), dtype=torch.bool)]),
        finished=step.done,
        open=not step.done,
    )
