"""Builds the parts of a run from its checked config, in the order in which mistakes are cheapest to find: hardware,
where the model is, the data and its audit, and only then weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from postrain.check import instantiate
from postrain.data.audit import Audit
from postrain.data.module import DataModule
from postrain.hardware import Hardware
from postrain.methods.base import Method, Parts
from postrain.models.adapters import Adapter
from postrain.models.loading import load_causal, load_scalar, load_tokenizer
from postrain.models.reference import Reference
from postrain.models.sources import ResolvedModel
from postrain.rewards.base import Reward, preflight
from postrain.rollout.collect import collect
from postrain.rollout.engine import Engine


@dataclass(frozen=True)
class Built:
    """A run that is ready to train."""

    method: Method
    data: DataModule
    audit: Audit
    tokenizer: Any
    hardware: Hardware


def build(config: Mapping[str, Any], resolved: ResolvedModel) -> Built:
    """Everything between a checked config and training. Raises ConfigError for what only the parts together tell."""
    method: Method = instantiate(config["method"])
    hardware: Hardware = instantiate(config["trainer"])
    engine: Engine = instantiate(config["rollout"])
    data: DataModule = instantiate(config["data"])
    tokenizer = load_tokenizer(resolved)
    audit = data.prepare(
        kind=method.kind,
        tokenizer=tokenizer,
        context=resolved.context,
        completion_tokens=engine.sampling.max_new_tokens,
        batch_size=method.batch_size,
        updates=method.updates,
        seed=config["seed"],
    )
    torch.manual_seed(config["seed"])
    policy = load_policy(method, config, resolved, hardware)
    reward: Reward | None = instantiate(config["reward"]) if method.needs_reward else None
    method.attach(
        Parts(
            policy=policy,
            template=data.template,
            seed=config["seed"],
            engine=engine,
            # A copy of a model is a lot of memory: only where somebody looks at it.
            reference=Reference.of(policy) if compared(method, config) else None,
            reward=reward,
        )
    )
    return Built(method, data, audit, tokenizer, hardware)


def compared(method: Method, config: Mapping[str, Any]) -> bool:
    """Whether the weights at the start are asked for: by the method, or for the KL of evaluated completions."""
    return method.needs_reference() or (method.head == "causal" and config["evaluation"]["completions"] > 0)


def load_policy(method: Method, config: Mapping[str, Any], resolved: ResolvedModel, hardware: Hardware) -> nn.Module:
    """The model that learns, with its adapter."""
    adapter: Adapter = instantiate(config["adapter"])
    load = load_causal if method.head == "causal" else load_scalar
    # Seen as what it is derived from: transformers wraps `to` in a way that loses its type.
    model = cast("nn.Module", load(resolved, dtype=hardware.dtype, quantization=adapter.quantization()))
    return adapter.wrap(model if adapter.quantization() else model.to(hardware.device), head=method.head)


def check_reward(method: Method, data: DataModule) -> None:
    """Scores a few completions of the untrained policy: a reward that says the same of all of them teaches nothing."""
    prompts = data.eval_prompts(16)
    parts = method.parts
    with torch.no_grad():
        episodes = collect(
            parts.engine, method.policy, parts.template, prompts, keys=list(range(len(prompts))), reward=parts.reward
        )
    preflight(episodes.reward_B)
