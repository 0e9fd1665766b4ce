"""From prompts to scored episodes: sample, decode, reward. What every online method does first."""

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
from postrain.rollout.turns import SINGLE_TURN, Environment, Episode, Tally, play
from postrain.types import Batch, Max, Mean, RewardBatch, Rows


@dataclass(frozen=True)
class Episodes(Batch):
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
    tallies: tuple[Tally, ...] | None = None
    """What happened in each episode; None where there was no environment."""

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
        tallies = [asdict(tally) for tally in self.tallies or ()]
        for name in tallies[0] if tallies else ():
            found[f"environment/{name}"] = Mean(sum(tally[name] for tally in tallies), rows)
        return found


def collect(
    engine: Engine,
    policy: nn.Module | Mixture,
    template: Template,
    prompts: Prompts,
    *,
    keys: Sequence[int],
    reward: Reward | None = None,
    environment: Environment = SINGLE_TURN,
) -> Episodes:
    """One episode a prompt, on the prompts' device; `keys` are the rows' seeds.

    The reward is that of the whole text, answers of the environment included, plus what the environment itself paid,
    which is logged as a part by that name.
    """
    played = play(engine, policy, template, prompts, keys=keys, environment=environment)
    texts = tuple(template.decode(episode.ids) for episode in played)
    earned = reward(prompts.texts, texts, prompts.columns) if reward else RewardBatch(torch.zeros(len(texts)), {})
    if environment.stop:
        earned = _with_paid(earned, played)
    device = next((policy.policy if isinstance(policy, Mixture) else policy).parameters()).device
    return Episodes(
        rows=_rows(prompts, played).to(device),
        logps_BT=pad_sequence([episode.logps for episode in played], batch_first=True).to(device),
        finished_B=torch.tensor([episode.finished for episode in played], device=device),
        reward_B=earned.total_B.to(device),
        prompts=prompts.texts,
        completions=texts,
        parts=tuple({name: part[i] for name, part in earned.parts.items()} for i in range(len(texts))),
        columns=prompts.columns,
        tallies=tuple(episode.tally for episode in played) if environment.stop else None,
    )


def _with_paid(earned: RewardBatch, played: Sequence[Episode]) -> RewardBatch:
    """The reward with what the environment paid."""
    paid = tuple(episode.reward for episode in played)
    return RewardBatch(earned.total_B + torch.tensor(paid), {**earned.parts, "environment": paid})


def _rows(prompts: Prompts, played: Sequence[Episode]) -> Rows:
    """Prompt and what follows it joined; what the policy wrote is supervised."""
    pairs = [(prompt.cpu(), episode) for prompt, episode in zip(prompts.ids, played, strict=True)]
    return Rows(
        ids=tuple(torch.cat([prompt, episode.ids]) for prompt, episode in pairs),
        supervised=tuple(torch.cat([torch.zeros(len(prompt)).bool(), episode.own]) for prompt, episode in pairs),
        row_ids=prompts.row_ids,
    )
