"""Rollouts of every online method: sample completions of prompts, decode them, score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.environments.base import MessageEnvironment
from postrain.rewards.base import Reward
from postrain.rollout.engine import Engine, Mixture
from postrain.rollout.environment import SINGLE_TURN, Environment, SingleTurn
from postrain.rollout.sampled_columns import columns_for
from postrain.rollout.turns import EnvironmentStats, Rollout, roll_out
from postrain.types import Batch, Max, Mean, RewardBatch, Rows


@dataclass(frozen=True)
class Rollouts(Batch):
    """Sampled completions of prompts with their rewards."""

    rows: Rows
    """Prompt and completion; tokens of the policy are supervised, observations of an environment are not."""
    logps_BT: Tensor
    """Log-probabilities recorded while sampling, of the supervised tokens, [B, T]."""
    finished_B: Tensor
    """True where the completion ended with an end token or stop text, False where it was truncated."""
    reward_B: Tensor
    """Reward, [B]; 0 without a reward function, NaN if unscorable."""
    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    """Text of the policy and of observations; with the tokens of roles and turns in a message environment."""
    parts: tuple[Mapping[str, float | None], ...]
    """Each row's reward components, before weighting."""
    columns: tuple[Mapping[str, Any], ...]
    """Each prompt's other columns."""
    environment_stats: tuple[EnvironmentStats, ...] | None = None
    """Turns, calls and errors of each rollout; None without an environment."""
    turn_tokens: tuple[tuple[int, ...], ...] | None = None
    """The policy's tokens in each turn of each rollout; None without an environment."""
    turn_rewards: tuple[tuple[float, ...], ...] | None = None
    """The environment's reward of each turn of each rollout."""

    def metrics(self) -> dict[str, Mean | Max]:
        """Metrics of the rewards, their components, and the lengths and finish rate of completions."""
        names = dict.fromkeys(name for part in self.parts for name in part)
        unscorable_B = self.reward_B.isnan()
        found: dict[str, Mean | Max] = {
            f"reward/{name}": Mean.of_known([part.get(name) for part in self.parts]) for name in names
        }
        found |= {
            # After the components, so that one called "total" cannot replace it.
            "reward/total": Mean.of_rows(self.reward_B.nan_to_num(0.0), (~unscorable_B).float()),
            "reward/unscorable": Mean.of_rows(unscorable_B.float()),
            "completion/length": Mean.of_rows(torch.stack([row.sum() for row in self.rows.supervised]).float()),
            "completion/finished": Mean.of_rows(self.finished_B.float()),
        }
        counted = [stats.numbers() for stats in self.environment_stats or ()]
        for name in {name: None for numbers in counted for name in numbers}:
            found[f"environment/{name}"] = Mean.of_known([numbers.get(name) for numbers in counted])
        return found


def collect(
    engine: Engine,
    policy: nn.Module | Mixture,
    template: Template,
    prompts: Prompts,
    *,
    seeds: Sequence[int],
    reward: Reward | None = None,
    environment: Environment = SINGLE_TURN,
    episodes: Sequence[Rollout] | None = None,
) -> Rollouts:
    """One rollout per prompt, on the policy's device; `seeds` has one for each row. `episodes` were sampled earlier.

    The reward is that of the whole text, observations included, or in a message environment that of the last message;
    plus the environment's own reward, which is logged as reward/environment.
    """
    rollouts = (
        roll_out(engine, policy, template, prompts, seeds=seeds, environment=environment)
        if episodes is None
        else episodes
    )
    single, messages = isinstance(environment, SingleTurn), isinstance(environment, MessageEnvironment)
    texts = tuple(
        template.decode_all(rollout.ids.tolist()) if messages else template.decode(rollout.ids) for rollout in rollouts
    )
    answers = tuple(rollout.last_message for rollout in rollouts) if messages else texts
    rows, model = _rows(prompts, rollouts), policy.policy if isinstance(policy, Mixture) else policy
    scored = RewardBatch(torch.zeros(len(texts)), {})
    if reward:
        scored = reward(prompts.texts, answers, columns_for(reward, prompts.columns, model, rows, rollouts, seeds))
    if not single:
        scored = _with_environment_reward(scored, rollouts)
    device = next(model.parameters()).device
    return Rollouts(
        rows=rows.to(device),
        logps_BT=pad_sequence([rollout.logps for rollout in rollouts], batch_first=True).to(device),
        finished_B=torch.tensor([rollout.finished for rollout in rollouts], device=device),
        reward_B=scored.total_B.to(device),
        prompts=prompts.texts,
        completions=texts,
        parts=tuple({name: part[i] for name, part in scored.parts.items()} for i in range(len(texts))),
        columns=prompts.columns,
        environment_stats=None if single else tuple(rollout.stats for rollout in rollouts),
        turn_tokens=None if single else tuple(rollout.turn_tokens for rollout in rollouts),
        turn_rewards=None if single else tuple(rollout.turn_rewards for rollout in rollouts),
    )


def _with_environment_reward(scored: RewardBatch, rollouts: Sequence[Rollout]) -> RewardBatch:
    """The reward plus the environment's own."""
    environment_reward = tuple(rollout.reward for rollout in rollouts)
    return RewardBatch(
        scored.total_B + torch.tensor(environment_reward), {**scored.parts, "environment": environment_reward}
    )


def _rows(prompts: Prompts, rollouts: Sequence[Rollout]) -> Rows:
    """Prompt and completion joined; tokens of the policy are supervised."""
    pairs = [(prompt.cpu(), rollout) for prompt, rollout in zip(prompts.ids, rollouts, strict=True)]
    return Rows(
        ids=tuple(torch.cat([prompt, rollout.ids]) for prompt, rollout in pairs),
        supervised=tuple(
            torch.cat([torch.zeros(len(prompt)).bool(), rollout.policy_mask]) for prompt, rollout in pairs
        ),
        row_ids=prompts.row_ids,
    )
