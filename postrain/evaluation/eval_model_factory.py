"""Makes the EvalModel of a policy during training, and converts its data to the kinds of record that tasks need.

Each kind is prepared on first use, with the same source, seed and template, so that the held-out rows stay the same.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from functools import cached_property

from postrain.config.schema import Deferred
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.evaluation.task import EvalModel
from postrain.methods.base import Method
from postrain.models.loading import load_tokenizer
from postrain.models.sources import ResolvedModel
from postrain.rewards.base import PreferenceModel, Reward


@dataclass(frozen=True, kw_only=True)
class DataConversions:
    """Prepares the data as records of a kind; see `EvalModel.data_as`."""

    data: DataModule
    """The `data` of the run; each kind is prepared on a copy."""
    resolved: ResolvedModel
    """The model whose tokenizer encodes the data."""
    context: int
    completion_tokens: int
    """Tokens reserved for the completion."""
    seed: int
    """The seed of the split, for sources without held-out rows."""
    prepared: dict[str, DataModule] = field(default_factory=dict)
    """Prepared data modules by record kind."""
    errors: dict[str, str] = field(default_factory=dict)
    """Error messages of kinds that the data cannot be converted to."""

    def __call__(self, kind: str) -> DataModule:
        if kind in self.errors:
            raise ConfigError(self.errors[kind])
        if kind not in self.prepared:
            try:
                self.prepared[kind] = self._prepared(kind)
            except ConfigError as error:
                self.errors[kind] = str(error)
                raise
        return self.prepared[kind]

    def _prepared(self, kind: str) -> DataModule:
        data = copy(self.data)
        data.prepare(
            kind=kind,
            # A fresh tokenizer: preparing data sets its chat template, which `auto` would then detect.
            tokenizer=load_tokenizer(self.resolved),
            context=self.context,
            completion_tokens=self.completion_tokens,
            batch_size=1,
            updates=0,
            seed=self.seed,
        )
        return data


class EvalModelFactory:
    """Makes the EvalModel of each evaluation of a run."""

    def __init__(
        self, resolved: ResolvedModel, data: DataModule, reward: Deferred[Reward | PreferenceModel] | None = None
    ) -> None:
        """`data` is prepared for the method; `reward` is the run's configured reward."""
        self.configured = reward
        plan = data.spec
        self.data_as = DataConversions(
            data=data,
            resolved=resolved,
            context=plan.context,
            completion_tokens=plan.completion_tokens,
            seed=plan.seed,
            prepared={plan.kind: data},
        )
        self.name, self.tokenizer = resolved.name, data.chat_template.tokenizer

    def __call__(self, method: Method) -> EvalModel | None:
        """The policy as an EvalModel; None if it does not generate text."""
        if method.head != "causal":
            return None
        parts = method.components
        return EvalModel(
            name=self.name,
            model=method.policy,
            tokenizer=self.tokenizer,
            template=parts.template,
            engine=parts.engine,
            environment=parts.environment,
            reward=parts.reward or self._configured_reward(method),
            reference=parts.reference,
            seed=parts.seed,
            context=self.data_as.context,
            micro_batch_tokens=method.tokens_per_micro_batch,
            data_as=self.data_as,
        )

    def _configured_reward(self, method: Method) -> Reward | None:
        """The configured reward of a method that does not learn from it."""
        if self._reward is not None:
            self._reward.to(method.device)
        return self._reward

    @cached_property
    def _reward(self) -> Reward | None:
        return scoring_reward(self.configured)


def scoring_reward(configured: Deferred[Reward | PreferenceModel] | None) -> Reward | None:
    """The configured reward if it scores single completions; None for a preference, which only compares them."""
    found = configured and configured.value
    return found if callable(found) else None  # pyright: ignore[reportReturnType]
