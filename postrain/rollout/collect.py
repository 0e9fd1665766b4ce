"""From prompts to scored rollouts: sample, decode, reward. What every online method does first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.rewards.base import Reward
from postrain.rollout.engine import Engine, Mixture
from postrain.rollout.turns import SINGLE_TURN, Environment, EnvironmentStats, Rollout, roll_out
from postrain.types import Batch, Max, Mean, RewardBatch, Rows


@dataclass(frozen=True)
class Rollouts(Batch):
    """Sampled completions of prompts, with what they earned."""

    rows: Rows
    """Prompt and completion; what the policy wrote of it is supervised, what an environment answered is not."""
    logps_BT: Tensor
    """Log-probabilities recorded while sampling, of the supervised tokens, [B, T]."""
    finished_B: Tensor
    """True where the completion ended by itself."""
    reward_B: Tensor
    """What was earned, [B]; 0 without a reward, NaN where it could not be scored."""
    prompts: tuple[str, ...]
    completions: tuple[str, ...]
    parts: tuple[Mapping[str, float | None], ...]
    """Each row's reward by part."""
    columns: tuple[Mapping[str, Any], ...]
    """Each prompt's other columns."""
    environment_stats: tuple[EnvironmentStats, ...] | None = None
    """What happened in each rollout; None where there was no environment."""

    def _part(self, name: str) -> Mean:
        known = [value for part in self.parts if (value := part[name]) is not None]
        return Mean(sum(known), len(known))

    def metrics(self) -> dict[str, Mean | Max]:
        """Rewards by part and the shape of the completions, ready to log."""
        rows = len(self)
        scored_B = ~self.reward_B.isnan()
        found: dict[str, Mean | Max] = {f"reward/{name}": self._part(name) for name in (self.parts[0] if rows else ())}
        found |= {
            # After the parts: whatever they are called, this is what is paid.
            "reward/total": Mean(self.reward_B[scored_B].sum(), scored_B.sum()),
            "reward/unscorable": Mean((~scored_B).sum(), rows),
            "completion/length": Mean(torch.cat(self.rows.supervised).sum(), rows),
            "completion/finished": Mean(self.finished_B.sum(), rows),
        }
        environment_stats = [asdict(stats) for stats in self.environment_stats or ()]
        for name in environment_stats[0] if environment_stats else ():
            found[f"environment/{name}"] = Mean(sum(stats[name] for stats in environment_stats), rows)
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
) -> Rollouts:
    """One rollout a prompt, on the prompts' device; `seeds` has one for each row.

    The reward is that of the whole text, answers of the environment included, plus what the environment itself paid,
    which is logged as a part by that name.
    """
    rollouts = roll_out(engine, policy, template, prompts, seeds=seeds, environment=environment)
    texts = tuple(template.decode(rollout.ids) for rollout in rollouts)
    earned = reward(prompts.texts, texts, prompts.columns) if reward else RewardBatch(torch.zeros(len(texts)), {})
    if environment.stop:
        earned = _with_paid(earned, rollouts)
    device = next((policy.policy if isinstance(policy, Mixture) else policy).parameters()).device
    return Rollouts(
        rows=_rows(prompts, rollouts).to(device),
        logps_BT=pad_sequence([rollout.logps for rollout in rollouts], batch_first=True).to(device),
        finished_B=torch.tensor([rollout.finished for rollout in rollouts], device=device),
        reward_B=earned.total_B.to(device),
        prompts=prompts.texts,
        completions=texts,
        parts=tuple({name: part[i] for name, part in earned.parts.items()} for i in range(len(texts))),
        columns=prompts.columns,
        environment_stats=tuple(rollout.stats for rollout in rollouts) if environment.stop else None,
    )


def _with_paid(earned: RewardBatch, rollouts: Sequence[Rollout]) -> RewardBatch:
    """The reward with what the environment paid."""
    paid = tuple(rollout.reward for rollout in rollouts)
    return RewardBatch(earned.total_B + torch.tensor(paid), {**earned.parts, "environment": paid})


def _rows(prompts: Prompts, rollouts: Sequence[Rollout]) -> Rows:
    """Prompt and what follows it joined; what the policy wrote is supervised."""
    pairs = [(prompt.cpu(), rollout) for prompt, rollout in zip(prompts.ids, rollouts, strict=True)]
    return Rows(
        ids=tuple(torch.cat([prompt, rollout.ids]) for prompt, rollout in pairs),
        supervised=tuple(
            torch.cat([torch.zeros(len(prompt)).bool(), rollout.policy_mask]) for prompt, rollout in pairs
        ),
        row_ids=prompts.row_ids,
    )
