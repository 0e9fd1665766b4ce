"""The largest micro-batch of a run, found from its encoded rows before weights are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from operator import add

import torch

from postrain.data.kinds.prompt import Prompts
from postrain.data.module import DataModule
from postrain.data.schedule import TrainBatches
from postrain.methods.group_relative import GroupRelative
from postrain.methods.online_preference import OnlinePreference
from postrain.models.micro_batches import micro_batches
from postrain.training.config import TrainConfig
from postrain.types import Batch, Rows

SAMPLED_UPDATES = 32
"""Updates among whose batches the largest micro-batch is found."""


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of a run."""

    rows: Rows
    tokens: int
    """Tokens of its forward pass, in which shared prompts count once."""
    micro_batches: int
    """Number of micro-batches of its update."""


def largest_micro_batch(config: TrainConfig, data: DataModule) -> MicroBatch:
    """The micro-batch with the most tokens among those of the first updates."""
    schedule = TrainBatches(
        items=data.train,
        batch_size=data.spec.batch_size,
        updates=min(data.spec.updates, SAMPLED_UPDATES),
        seed=data.spec.seed,
        ranks=config.trainer.ranks,
        streams=data.streams,
    )
    found: MicroBatch | None = None
    for batch in schedule:
        rows, costs, groups = completed(config, batch) if isinstance(batch, Prompts) else rows_of(batch)
        parts = micro_batches(costs, config.micro_batch_tokens, groups)
        for part in parts:
            tokens = sum(costs[index] for index in part)
            if found is None or tokens > found.tokens:
                found = MicroBatch(reduce(add, (rows[index] for index in part)), tokens, len(parts))
    assert found is not None
    return found


Items = tuple[Sequence[Rows], Sequence[int], Sequence[int] | None]
"""The token rows of each item of a batch, its tokens in the forward pass, and its prompt group."""


def rows_of(batch: Batch) -> Items:
    """A training batch; without the rows of KTO's baseline, which need no gradient."""
    if isinstance(batch, Rows):
        parts = [batch]
    else:
        known = [getattr(batch, field.name) for field in fields(batch) if field.name != "unrelated"]
        parts = [value for value in known if isinstance(value, Rows)]
    costs = batch.cost() if len(parts) > 1 else parts[0].cost()
    rows = [reduce(add, (part.select([index]) for part in parts)) for index in range(len(batch))]
    return rows, costs, batch.prompt_groups()


def completed(config: TrainConfig, prompts: Prompts) -> Items:
    """The completions of a mini-batch of prompts, all of full length."""
    method, length = config.method, completion_tokens(config)
    each = getattr(method, "group_size", 1)
    each = min(each, 2) if isinstance(method, OnlinePreference) else each
    share = each if isinstance(method, GroupRelative | OnlinePreference) else 1
    count = max(1, method.batch_size // getattr(method, "minibatches_per_epoch", 1) // config.trainer.ranks)
    rows, costs, groups = [], [], []
    for index, ids in enumerate(prompts.ids[:count]):
        for number in range(each):
            completion = torch.full((length,), number)
            supervised = torch.arange(len(ids) + length) >= len(ids)
            rows.append(Rows((torch.cat([ids, completion]),), (supervised,), (index,)))
            costs.append(len(ids) // share + length)
            groups.append(index)
    return rows, costs, groups


def completion_tokens(config: TrainConfig) -> int:
    """The most tokens after a prompt."""
    return config.rollout.sampling.max_new_tokens + config.environment.max_observation_tokens
