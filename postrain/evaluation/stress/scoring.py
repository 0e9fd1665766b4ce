"""Rewards of texts that the model did not sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from postrain.data.kinds.prompt import Prompts
from postrain.evaluation.task import EvalModel
from postrain.models.micro_batches import in_micro_batches
from postrain.models.scoring import score
from postrain.rewards.base import Reward, columns_read, nan_to_none
from postrain.rollout.sampled_columns import columns_for
from postrain.rollout.turns import Rollout
from postrain.seeds import derive_seed
from postrain.types import Rows


def rewards_of(eval_model: EvalModel, reward: Reward, prompts: Prompts, texts: Sequence[str]) -> list[float | None]:
    """The reward of a text for each prompt; None if it cannot be scored."""
    columns = prompts.columns if not columns_read(reward) else _as_sampled(eval_model, reward, prompts, texts)
    return list(nan_to_none(reward(prompts.texts, texts, columns).total_B))


def _as_sampled(
    eval_model: EvalModel, reward: Reward, prompts: Prompts, texts: Sequence[str]
) -> Sequence[Mapping[str, Any]]:
    """The columns that the reward would receive if the model had sampled these texts, cut at its context."""
    template, end = eval_model.template, torch.tensor([eval_model.template.end_id])
    heads = [ids.cpu() for ids in prompts.ids]
    ids = [
        torch.cat([template.encode_continuation(text), end])[: max(1, eval_model.context - len(head))]
        for head, text in zip(heads, texts, strict=True)
    ]
    pairs = list(zip(heads, ids, strict=True))
    rows = Rows(
        tuple(torch.cat(pair) for pair in pairs),
        tuple(torch.arange(len(head) + len(own)) >= len(head) for head, own in pairs),
        prompts.row_ids,
    )
    logps = [torch.zeros(len(own)) for own in ids]
    if "logps" in columns_read(reward):
        found = in_micro_batches(lambda part: score(eval_model.model, part), rows, eval_model.micro_batch_tokens)
        logps = [values[mask].cpu() for values, mask in zip(found.logps_BT, found.mask_BT, strict=True)]
    rollouts = [
        Rollout(own, torch.ones(len(own), dtype=torch.bool), values, None)
        for own, values in zip(ids, logps, strict=True)
    ]
    seeds = [
        derive_seed(eval_model.seed, f"stress {text}", row) for text, row in zip(texts, prompts.row_ids, strict=True)
    ]
    return columns_for(reward, prompts.columns, eval_model.model, rows, rollouts, seeds)
