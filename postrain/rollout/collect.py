"""From prompts to scored episodes: sample, decode, reward. What every online method does first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from postrain import parallel
from postrain.data.chat import Template
from postrain.rewards.base import Reward
from postrain.rollout.engine import Engine, Mixture
from postrain.types import Batch, Completion, ConfigError, Max, Mean, Prompts, Rows, Stop

# Largest difference of two float32 log-probabilities that the order of summation explains.
SAMPLER_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Episodes(Batch):
    """Sampled completions of prompts, with what they earned."""

    rows: Rows
    """Prompt and completion; the completion is supervised."""
    logps_BT: Tensor
    """Log-probabilities recorded while sampling, [B, T]."""
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

    def paid(self) -> Tensor:
        """The reward of each episode, [B]: unscorable ones earn the global mean of the others and push nowhere."""
        scored_B = ~self.reward_B.isnan()
        total, count = parallel.all_sum(torch.stack([self.reward_B[scored_B].sum(), scored_B.sum().float()]))
        return torch.where(scored_B, self.reward_B, total / count.clamp(min=1))

    def sampler_error(self, logps_BT: Tensor, *, strict: bool) -> Max:
        """Largest difference between the recorded log-probabilities and the scorer's, [B, T].

        Raises ConfigError where `strict` (float32 throughout) and it is more than rounding: the ratio of an update
        would not start at 1.
        """
        error = float(((self.logps_BT - logps_BT) * (logps_BT != 0)).abs().max())
        if strict and error > SAMPLER_TOLERANCE:
            raise ConfigError(
                f"rollout: sampled log-probabilities differ by {error:.2g} from the policy's own in float32, so the "
                "engine and the model do not compute the same"
            )
        return Max(error)

    def metrics(self) -> dict[str, Mean | Max]:
        """Rewards by part and the shape of the completions, ready to log."""
        rows = len(self)
        scored_B = ~self.reward_B.isnan()
        found: dict[str, Mean | Max] = {
            "reward/total": Mean(self.reward_B[scored_B].sum(), scored_B.sum()),
            "reward/unscorable": Mean((~scored_B).sum(), rows),
            "completion/length": Mean(torch.cat(self.rows.supervised).sum(), rows),
            "completion/finished": Mean(self.finished_B.sum(), rows),
        }
        for name in self.parts[0] if rows else ():
            known = [value for part in self.parts if (value := part[name]) is not None]
            found[f"reward/{name}"] = Mean(sum(known), len(known))
        return found


def collect(
    engine: Engine,
    policy: nn.Module | Mixture,
    template: Template,
    prompts: Prompts,
    *,
    keys: Sequence[int],
    reward: Reward | None = None,
) -> Episodes:
    """One episode a prompt, on the prompts' device; `keys` are the rows' seeds."""
    stop = Stop(template.stop_ids, engine.sampling.stop, template.decode_all)
    completions = engine.generate(policy, prompts.ids, keys=keys, stop=stop)
    texts = tuple(template.decode(completion.ids) for completion in completions)
    earned = reward(prompts.texts, texts, prompts.columns) if reward else None
    device = next((policy.policy if isinstance(policy, Mixture) else policy).parameters()).device
    return Episodes(
        rows=_rows(prompts, completions).to(device),
        logps_BT=pad_sequence([completion.logps for completion in completions], batch_first=True).to(device),
        finished_B=torch.tensor([completion.finished for completion in completions], device=device),
        reward_B=earned.total_B.to(device) if earned else torch.zeros(len(texts), device=device),
        prompts=prompts.texts,
        completions=texts,
        parts=tuple(
            {name: part[i] for name, part in earned.parts.items()} if earned else {} for i in range(len(texts))
        ),
        columns=prompts.columns,
    )


def _rows(prompts: Prompts, completions: Sequence[Completion]) -> Rows:
    """Prompt and completion joined; the completion supervised."""
    pairs = [(prompt.cpu(), completion.ids) for prompt, completion in zip(prompts.ids, completions, strict=True)]
    return Rows(
        ids=tuple(torch.cat([prompt, ids]) for prompt, ids in pairs),
        supervised=tuple(torch.cat([torch.zeros(len(prompt)), torch.ones(len(ids))]).bool() for prompt, ids in pairs),
        row_ids=prompts.row_ids,
    )
