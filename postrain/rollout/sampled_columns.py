"""Columns that a reward reads of sampled completions besides those of the data (SAMPLED_COLUMNS in rewards/base.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from postrain.models.self_certainty import self_certainty
from postrain.rewards.base import Reward, columns_read
from postrain.rollout.turns import Rollout
from postrain.types import Rows


def columns_for(
    reward: Reward,
    columns: Sequence[Mapping[str, Any]],
    model: nn.Module,
    rows: Rows,
    rollouts: Sequence[Rollout],
    seeds: Sequence[int],
) -> Sequence[Mapping[str, Any]]:
    """The columns of each completion's prompt with those of the SAMPLED_COLUMNS that the reward reads."""

    def values(name: str) -> Sequence[Any]:
        match name:
            case "completion_ids" | "token_ids":
                return [rollout.ids[rollout.policy_mask].tolist() for rollout in rollouts]
            case "logps":
                return [rollout.logps.tolist() for rollout in rollouts]
            case "sample_seed":
                return seeds
            case _:
                return self_certainty(model, rows).tolist()

    read = {name: values(name) for name in columns_read(reward)}
    return [{**row, **{name: column[index] for name, column in read.items()}} for index, row in enumerate(columns)]
