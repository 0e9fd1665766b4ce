"""The components of a method besides its settings, and its progress counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from postrain.config.check import check_objects
from postrain.data.chat import Template
from postrain.errors import ConfigError
from postrain.models.end_tokens import record_end_ids
from postrain.models.parts import unwrapped
from postrain.models.provenance import provenance_of
from postrain.models.reference import Reference
from postrain.rewards.base import PreferenceModel, Reward
from postrain.rewards.function import Function
from postrain.rollout.engine import Engine
from postrain.rollout.environment import SINGLE_TURN, Environment
from postrain.rollout.local import LocalEngine

RewardLike = Reward | PreferenceModel | Callable[..., Any]
"""A reward, a preference, or a Python function with the signature of reward=function."""


@dataclass(frozen=True)
class ForeignTeacher:
    """A teacher with another tokenizer, which only method.cross_tokenizer can use."""

    reference: Reference
    template: Template
    """Its chat template and tokenizer."""

    @classmethod
    def loaded(cls, policy: nn.Module, reference: nn.Module | Reference) -> ForeignTeacher:
        """A teacher loaded with `load_model`, which records its tokenizer. Raises ConfigError for another model."""
        teacher = reference if isinstance(reference, Reference) else Reference.for_policy(policy, reference)
        known = provenance_of(teacher.frozen) if teacher.frozen is not None else None
        if known is None:
            raise ConfigError("method.cross_tokenizer: load the teacher with pt.load_model, which knows its tokenizer")
        return cls(teacher, Template(known.tokenizer, install=False))


@dataclass(frozen=True, kw_only=True)
class MethodComponents:
    """The policy and the components that a method uses with it."""

    policy: nn.Module
    """The trained model: a causal LM or a scalar model, with its adapter, if any."""
    template: Template
    """Chat template and tokenizer."""
    seed: int
    engine: Engine
    """Samples completions, in rollouts and in evaluation."""
    reference: Reference | None = None
    """The reference policy: the policy's initial weights, or another model; None if unused."""
    separate_reference: bool = False
    """True if the reference is not the policy's initial weights."""
    foreign_teacher: ForeignTeacher | None = None
    """A teacher with another tokenizer; `reference` is then the initial policy."""
    reference_fingerprint: str = ""
    """Identifies the reference's weights and their precision in the names of cache files; empty: hash the weights."""
    reward: Reward | None = None
    """Scores completions; only for methods with `needs_reward`."""
    preference: PreferenceModel | None = None
    """Compares two completions, if the reward is a preference."""
    environment: Environment = SINGLE_TURN
    """The environment of multi-turn rollouts."""
    optim: Callable[..., torch.optim.Optimizer] | None = None
    """Constructs the optimizer from parameter groups and `lr`; None is AdamW with the method's settings."""
    lr_ratio: float = 1.0
    """The learning rate of LoRA's B matrices as a multiple of the method's (LoRA+)."""
    master_weights: bool = True
    """Whether the optimizer keeps float32 copies of 16-bit parameters."""


@dataclass
class Counters:
    """Progress of a run, checkpointed and logged. Lightning's global_step counts optimizer steps."""

    updates: int = 0
    optimizer_steps: int = 0
    episodes: int = 0
    """Rows, pairs or prompts trained on, over all ranks."""
    tokens: int = 0
    """Tokens of forward passes with a gradient, over all ranks."""


def components_of(
    model: nn.Module,
    tokenizer: Any,
    *,
    method: Any,
    seed: int,
    reference: nn.Module | Reference | None,
    needs_reference: bool,
    engine: Engine | None,
    reward: RewardLike | None,
    environment: Environment | None,
    optim: Callable[..., torch.optim.Optimizer] | None,
) -> MethodComponents:
    """The components of a method constructed in Python, with defaults for those not given.

    Without a reference, the model as it is now (or with its adapter off) is the reference policy where one is needed.
    """
    if tokenizer is None:
        raise ConfigError("tokenizer: expected the model's tokenizer; model, tokenizer = pt.load_model(...) gives both")
    if not isinstance(model, nn.Module):
        raise ConfigError(f"model: expected a PyTorch model, got {model!r:.60}; pt.load_model(...) gives one")
    if hasattr(unwrapped(model), "score") is not (method.head == "scalar"):
        has, needs = ("scalar", "causal") if method.head == "causal" else ("causal", "scalar")
        raise ConfigError(
            f"model: {type(method).__name__} needs a model with a {needs} head, not a {has} one; "
            f'load it with pt.load_model(NAME, head="{needs}")'
        )
    record_end_ids(tokenizer, model)
    engine = LocalEngine() if engine is None else engine
    check_objects(method=method, rollout=engine)
    foreign = None
    if reference is not None and getattr(method, "cross_tokenizer", False):
        foreign, reference, needs_reference = ForeignTeacher.loaded(model, reference), None, True
    separate = reference if isinstance(reference, Reference | None) else Reference.for_policy(model, reference)
    scores, compares = reward_and_preference(reward)
    return MethodComponents(
        policy=model,
        # `setup` replaces it by the template of the data, which is also set on the tokenizer.
        template=Template(tokenizer, seed=seed, install=False),
        seed=seed,
        engine=engine,
        reference=Reference.for_policy(model) if separate is None and needs_reference else separate,
        separate_reference=separate is not None,
        foreign_teacher=foreign,
        reward=scores,
        preference=compares,
        environment=SINGLE_TURN if environment is None else environment,
        optim=optim,
        lr_ratio=loaded.adapter.lr_ratio if (loaded := provenance_of(model)) else 1.0,
    )


def reward_and_preference(given: Any) -> tuple[Reward | None, PreferenceModel | None]:
    """The object as a reward and as a preference (it can be both); a plain function is wrapped as a reward."""
    found: Any = given if given is None or hasattr(given, "to") else Function.of(given)
    scores: Any = found if callable(found) else None
    return scores, found if isinstance(found, PreferenceModel) else None
