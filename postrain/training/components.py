"""Builds the components of a run from its config: data and audit first, since errors there are cheap, then weights."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from math import nan
from typing import Any, cast

import torch
from torch import nn

from postrain.data.audit import Audit
from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompts
from postrain.data.module import DataModule
from postrain.data.records import WrongKind
from postrain.data.rendering import prompt_messages
from postrain.environments.tool_environment import ToolEnvironment
from postrain.errors import ConfigError
from postrain.evaluation.completions import collect_in_shares, preferences
from postrain.evaluation.parts import check_part_names
from postrain.hardware.environment import is_first_rank
from postrain.hardware.sharding import full_state_dict
from postrain.methods.base import Method
from postrain.methods.components import ForeignTeacher, MethodComponents, reward_and_preference
from postrain.methods.learning_rates import count
from postrain.models.adapters import Adapter
from postrain.models.directory import read_json, rotary_limit
from postrain.models.loading import load_causal, load_scalar, load_tokenizer
from postrain.models.reference import Reference
from postrain.models.size import size_of
from postrain.models.sources import ResolvedModel
from postrain.models.vocabulary import randomly_initialized
from postrain.rewards.base import PreferenceModel, Reward, compares_group, preflight
from postrain.rewards.tool_calls import example_call, reads_calls, tool_calls
from postrain.rollout.collect import Rollouts
from postrain.rollout.engine import Reserving
from postrain.training.config import TrainConfig
from postrain.training.memory import check_memory
from postrain.training.reference import (
    build_reference,
    load_frozen,
    load_shards,
    reference_fingerprint,
    resolve_reference,
)


@dataclass(frozen=True)
class Components:
    """The components of a run that is ready to train."""

    method: Method
    data: DataModule
    audit: Audit
    tokenizer: Any
    reference: ResolvedModel | None
    """The reference model that the key `reference` names; None if the reference is the initial policy."""


def build(
    config: TrainConfig, *, before_weights: Callable[[TrainConfig, DataModule], None] = check_memory
) -> Components:
    """Builds data, policy, reference and rewards. Raises ConfigError for components that do not fit together.

    `before_weights` is called with the prepared data before weights are loaded.
    """
    method, resolved, data = config.method, config.resolved, copy(config.data)
    config.trainer.configure_process()
    # A method constructed in Python with a model already has its components.
    given: MethodComponents | None = getattr(method, "components", None)
    tokenizer = given.template.tokenizer if given else load_tokenizer(resolved)
    other = resolve_reference(config, tokenizer)
    # Only the loss can use a model with other tokens; evaluations compare with the initial policy.
    reference, foreign = (None, other) if getattr(method, "cross_tokenizer", False) else (other, None)
    try:
        audit = data.prepare(
            kind=method.data_kind(),
            tokenizer=tokenizer,
            context=min(model.context for model in (resolved, other) if model is not None),
            completion_tokens=config.rollout.sampling.max_new_tokens + config.environment.max_observation_tokens,
            batch_size=method.items_per_update(),
            updates=method.updates,
            seed=config.seed,
            use_margin=getattr(method, "use_margin", False),
            num_train_epochs=method.num_train_epochs,
        )
        method.updates, method.num_train_epochs = data.spec.updates, None
    except WrongKind as error:
        raise ConfigError(f"{error}{method.data_remedy()}") from None
    if isinstance(config.rollout, Reserving):
        config.rollout.reserve(data.row_tokens())
    check_part_names(data, config.evaluation.tasks)
    if given is None:
        before_weights(config, data)
    torch.manual_seed(config.seed)
    policy = given.policy if given else load_policy(config, data)
    reward, preference = build_reward(config)
    if not given:
        # Of the config on every rank: it also knows whether the weights are random.
        method.default_learning_rate = config.default_learning_rate
    method.attach(
        MethodComponents(
            policy=policy,
            template=data.chat_template,
            seed=config.seed,
            engine=config.rollout,
            reference=(given and given.reference) or build_reference(config, policy, reference, saved=given is None),
            separate_reference=given.separate_reference if given else reference is not None,
            foreign_teacher=given.foreign_teacher if given else foreign_teacher(config, policy, foreign),
            reference_fingerprint="" if given else reference_fingerprint(config, reference or resolved),
            reward=reward,
            preference=preference,
            environment=config.environment,
            optim=given.optim if given else config.make_optimizer,
            lr_ratio=given.lr_ratio if given else config.adapter.lr_ratio,
            master_weights=config.trainer.master_weights,
        )
    )
    if config.trainer.reference_precision and method.components.reference:
        method.components.reference.convert(lambda model: model.to(torch.bfloat16))
    return Components(method, data, audit, tokenizer, other)


def foreign_teacher(config: TrainConfig, policy: nn.Module, teacher: ResolvedModel | None) -> ForeignTeacher | None:
    """The teacher with another tokenizer, if there is one."""
    if teacher is None:
        return None
    loaded = Reference(policy, load_frozen(config, teacher, config.trainer.dtype))
    return ForeignTeacher(loaded, Template(load_tokenizer(teacher), seed=config.seed, install=False))


def build_reward(config: TrainConfig) -> tuple[Reward | None, PreferenceModel | None]:
    """The reward and the preference model of the `reward` group; one object may be both."""
    if not config.method.needs_reward:
        return None, None
    reward, preference = reward_and_preference(config.reward and config.reward.value)
    config.method.check_reward(reward, preference)
    return reward, preference


def load_policy(config: TrainConfig, data: DataModule, *, whole: bool = False) -> nn.Module:
    """The policy with its adapter; `data` determines which new tokens have to be trained.

    With fsdp, the policy may be sharded already, unless it has to be `whole`.
    """
    adapter, hardware, head = config.adapter, config.trainer, config.method.head
    if not whole and (sharded := load_shards(config, config.resolved, head, hardware.dtype)) is not None:
        return sharded
    load = load_causal if head == "causal" else load_scalar
    # The cast restores the type of `to`, which transformers wraps without annotations.
    base, saved = adapter.split(config.resolved)
    model = cast("nn.Module", load(base, dtype=hardware.dtype, quantization=adapter.quantization()))
    # A sharded model is moved block by block when it is sharded.
    stays = adapter.quantization() or hardware.strategy == "fsdp"
    model = model if stays else model.to(hardware.device)
    trainable_tokens = adapter.new_token_ids(model, data.chat_template.tokenizer, data.token_ids())
    return adapter.wrap(model, head=head, trainable_tokens=trainable_tokens, saved=saved)


def gather_policy(config: TrainConfig, components: Components) -> None:
    """Gathers the full policy of a sharded run on the first rank; every rank must call it."""
    method = components.method
    state = full_state_dict(method.policy) if method.device_mesh is not None else None
    if state is not None and is_first_rank():
        method.policy = load_policy(config, components.data, whole=True)
        method.policy.load_state_dict(state, strict=False)


def training_notes(components: Components, resolved: ResolvedModel, chosen: Adapter) -> list[str]:
    """Notes on how this model is trained, one line each."""
    found = [f"note: {note}" for note in components.data.chat_template.notes]
    if limit := rotary_limit(read_json(resolved.directory / "config.json")):
        found.append(
            f"note: a row longer than {limit} tokens changes this model's rotary scaling for its whole batch "
            f"(longrope), so rows are limited to {limit} tokens"
        )
    if note := chosen.note(resolved):
        found.append(note)
    if components.reference is not None and components.method.needs_teacher:
        sizes = [size_of(model) for model in (components.reference, resolved)]
        if sizes[0] < sizes[1]:
            teacher, student = map(count, sizes)
            found.append(f"note: the teacher ({teacher} parameters) is smaller than the student ({student})")
    adapter = getattr(components.method.policy, "peft_config", {}).get("default")
    trained = next(iter((getattr(adapter, "trainable_token_indices", None) or {}).values()), [])
    if trained:
        names = ", ".join(components.tokenizer.convert_ids_to_tokens(trained))
        found.append(f"note: the embeddings of these new tokens are trained besides the adapter: {names}")
    policy, tokens = components.method.policy, components.data.token_ids()
    if adapter and (frozen := randomly_initialized(policy, components.tokenizer, tokens, exclude=trained)):
        found.append(
            f"note: the embeddings of these added tokens look randomly initialized, and the adapter keeps them frozen: "
            f"{', '.join(frozen)}; train them with adapter.new_tokens='[{','.join(frozen)}]'"
        )
    return found


def check_call_format(method: Method, prompts: Prompts) -> None:
    """Raises ConfigError if calls are scored or run that the chat template writes in a form that cannot be read."""
    components = method.components
    rewards = getattr(components.reward, "parts", {"": components.reward}).values()
    runs_calls = isinstance(components.environment, ToolEnvironment) and components.environment.call_format == "json"
    if not runs_calls and not any(getattr(reward, "call", None) is tool_calls for reward in rewards):
        return
    for text, columns in zip(prompts.texts, prompts.columns, strict=True):
        if columns.get("tools"):
            call = example_call(columns["tools"][0])
            if not reads_calls(components.template, prompt_messages(text, columns), [call]):
                raise ConfigError(
                    "the chat template writes tool calls in a form that cannot be read, so each call would count as "
                    "wrong; use data.template=tools if it renders no tools, or another model"
                )
            return


def check_reward(method: Method, data: DataModule) -> None:
    """Scores 16 completions of the initial policy. Raises ConfigError for a constant reward."""
    prompts, components = data.eval_prompts(16), method.components
    check_call_format(method, prompts)
    # Of two completions, one of each prompt, both are often right.
    repeats = 4 if compares_group(components.reward) else 1
    prompts = prompts.select([row // repeats % len(prompts) for row in range(16)])

    def completed(first_seed: int) -> Rollouts:
        return collect_in_shares(
            components.engine,
            method.policy,
            components.template,
            prompts,
            seeds=range(first_seed, first_seed + len(prompts)),
            reward=components.reward,
            environment=components.environment,
        )

    with torch.no_grad():
        one = completed(0)
        if components.reward is not None:
            preflight(one.reward_B)
        elif components.preference is not None:
            other = completed(len(prompts))
            preflight(torch.tensor([nan if p is None else p for p in preferences(components.preference, one, other)]))
