"""Builds the parts of a run from its checked config, in the order in which mistakes are cheapest to find: hardware,
where the model is, the data and its audit, and only then weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import transformers
from torch import nn

from postrain.config.check import instantiate
from postrain.data.audit import Audit
from postrain.data.module import DataModule
from postrain.hardware.trainer import Hardware
from postrain.methods.base import Method, Parts
from postrain.models.adapters import Adapter
from postrain.models.directory import read_json, rotary_limit
from postrain.models.embeddings import drawn_tokens
from postrain.models.loading import load_causal, load_scalar, load_tokenizer
from postrain.models.reference import Reference
from postrain.models.sources import ResolvedModel, resolve_for
from postrain.rewards.base import Reward, preflight
from postrain.rewards.pairwise import Preference
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.types import ConfigError


@dataclass(frozen=True)
class Built:
    """A run that is ready to train."""

    method: Method
    data: DataModule
    audit: Audit
    tokenizer: Any
    hardware: Hardware
    other: ResolvedModel | None
    """What the policy is compared with, where it is not its own start."""


def build(config: Mapping[str, Any], resolved: ResolvedModel) -> Built:
    """Everything between a checked config and training. Raises ConfigError for what only the parts together tell."""
    method: Method = instantiate(config["method"])
    hardware: Hardware = instantiate(config["trainer"])
    hardware.settle()
    engine: Engine = instantiate(config["rollout"])
    environment: Environment = instantiate(config["environment"])
    data: DataModule = instantiate(config["data"])
    tokenizer = load_tokenizer(resolved)
    other = compared_with(method, config, tokenizer)
    audit = data.prepare(
        kind=method.kind,
        tokenizer=tokenizer,
        context=min(model.context for model in (resolved, other) if model is not None),
        completion_tokens=engine.sampling.max_new_tokens + environment.room,
        batch_size=method.items_drawn(),
        updates=method.updates,
        seed=config["seed"],
        use_margin=getattr(method, "use_margin", False),
    )
    torch.manual_seed(config["seed"])
    policy = load_policy(method, config, resolved, hardware, data)
    reward, preference = judges(config) if method.needs_reward else (None, None)
    if reward is None and method.needs_reward and not method.compares:
        raise ConfigError(
            f"reward: {type(preference).__name__} compares two completions, and {type(method).__name__} needs a number "
            "for each; choose another reward, or a method that learns from comparisons (online_dpo, nash_md)"
        )
    method.attach(
        Parts(
            policy=policy,
            template=data.template,
            seed=config["seed"],
            engine=engine,
            reference=reference_for(method, config, policy, other, hardware),
            foreign_reference=other is not None,
            origin=origin(other or resolved, config, hardware),
            reward=reward,
            preference=preference,
            environment=environment,
        )
    )
    return Built(method, data, audit, tokenizer, hardware, other)


def judges(config: Mapping[str, Any]) -> tuple[Reward | None, Preference | None]:
    """What the `reward` group gives: something that scores completions, compares them, or can do both."""
    found: Any = instantiate(config["reward"])
    scores, compares = callable(found), isinstance(found, Preference)
    return (found if scores else None), (found if compares else None)


def compared_with(method: Method, config: Mapping[str, Any], tokenizer: Any) -> ResolvedModel | None:
    """The model that `reference` names in place of the policy's start, if it does."""
    path = config["reference"]
    if path is None:
        return None
    found = resolve_for("reference", path, "a directory or run folder")
    if "scalar" in (method.head, found.head):
        who = "this method" if method.head == "scalar" else "a reward model"
        raise ConfigError(f"reference={path}: {who} gives no log-probabilities to compare; leave it out")
    theirs, ours = load_tokenizer(found).get_vocab(), tokenizer.get_vocab()
    if theirs != ours:
        raise ConfigError(
            f"reference={path}: its vocabulary ({len(theirs)} tokens) is not the policy's ({len(ours)}); "
            "log-probabilities can be compared over the same tokens only: give a model of the same family"
        )
    return found


def origin(model: ResolvedModel, config: Mapping[str, Any], hardware: Hardware) -> str:
    """Everything but rows that decides log-probabilities under the start of this run."""
    adapter: Adapter = instantiate(config["adapter"])
    weights = f"{model.fingerprint} {model.from_scratch} {model.resize} {adapter.quantization()}"
    return f"{weights} {hardware.precision} {hardware.accelerator} {torch.__version__} {transformers.__version__}"


def reference_for(
    method: Method, config: Mapping[str, Any], policy: nn.Module, other: ResolvedModel | None, hardware: Hardware
) -> Reference | None:
    """What the policy is compared with, if anybody asks: the method, or the KL of evaluated completions.

    A copy of a model is a lot of memory: there is none where nobody looks at it.
    """
    if other is not None:
        model = cast("nn.Module", load_causal(other, dtype=hardware.dtype)).to(hardware.device)
        return Reference(policy, model.requires_grad_(False), says=f"reference: {other.name} ({config['reference']})")
    if method.needs_reference() or (method.head == "causal" and config["evaluation"]["completions"] > 0):
        return Reference.of(policy)
    return None


def load_policy(
    method: Method, config: Mapping[str, Any], resolved: ResolvedModel, hardware: Hardware, data: DataModule
) -> nn.Module:
    """The model that learns, with its adapter; `data` says which tokens it has to know."""
    adapter: Adapter = instantiate(config["adapter"])
    load = load_causal if method.head == "causal" else load_scalar
    # Seen as what it is derived from: transformers wraps `to` in a way that loses its type.
    model = cast("nn.Module", load(resolved, dtype=hardware.dtype, quantization=adapter.quantization()))
    model = model if adapter.quantization() else model.to(hardware.device)
    learned = adapter.new_ids(model, data.template.tokenizer, data.token_ids())
    return adapter.wrap(model, head=method.head, learned=learned)


def notes(built: Built, resolved: ResolvedModel) -> list[str]:
    """What a user has to know of how this model is trained, a line each."""
    found = [f"note: {note}" for note in built.data.template.notes]
    if limit := rotary_limit(read_json(resolved.directory / "config.json")):
        found.append(
            f"note: the model scales rotary positions in another way for a whole batch once a row is longer than "
            f"{limit} tokens (longrope), so rows are kept within {limit}"
        )
    adapter = getattr(built.method.policy, "peft_config", {}).get("default")
    learned = next(iter((getattr(adapter, "trainable_token_indices", None) or {}).values()), [])
    if learned:
        names = ", ".join(built.tokenizer.convert_ids_to_tokens(learned))
        found.append(f"note: the embeddings of new tokens learn beside the adapter: {names}")
    policy, tokens = built.method.policy, built.data.token_ids()
    if adapter and (drawn := drawn_tokens(policy, built.tokenizer, tokens, but=learned)):
        found.append(
            f"note: the embeddings of these added tokens look untrained, drawn at random, and the adapter keeps them "
            f"frozen: {', '.join(drawn)}; let them learn with adapter.new_tokens='[{','.join(drawn)}]'"
        )
    return found


def check_reward(method: Method, data: DataModule) -> None:
    """Scores a few completions of the untrained policy: a reward that says the same of all of them teaches nothing."""
    prompts = data.eval_prompts(16)
    parts = method.parts

    def completed(first_seed: int) -> Rollouts:
        return collect(
            parts.engine,
            method.policy,
            parts.template,
            prompts,
            seeds=range(first_seed, first_seed + len(prompts)),
            reward=parts.reward,
            environment=parts.environment,
        )

    with torch.no_grad():
        one = completed(0)
        if parts.reward is not None:
            preflight(one.reward_B)
        elif parts.preference is not None:
            other = completed(len(prompts))
            preflight(parts.preference.beats(one.prompts, one.completions, other.completions, one.columns))
