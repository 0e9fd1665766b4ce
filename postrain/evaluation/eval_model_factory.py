"""The model of an evaluation while its method trains: the policy as it is now, with the run's own parts.

Its data can be asked for as other kinds of record than the method learns from, each prepared when it is first asked
for, with the same source, seed and template, so that what was held out stays held out.
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
    """See `EvalModel.data_as`."""

    data: DataModule
    """The `data` of the run; each kind is prepared in a copy of it."""
    resolved: ResolvedModel
    """Whose tokenizer writes it."""
    context: int
    completion_tokens: int
    """Left free after prompts."""
    seed: int
    """Of the split, where the source has no held-out rows of its own."""
    made: dict[str, DataModule] = field(default_factory=dict)
    """Data modules that are prepared already, by record kind."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why the data cannot be seen as a kind."""

    def __call__(self, kind: str) -> DataModule:
        if kind in self.refused:
            raise ConfigError(self.refused[kind])
        if kind not in self.made:
            try:
                self.made[kind] = self._prepared(kind)
            except ConfigError as error:
                self.refused[kind] = str(error)
                raise
        return self.made[kind]

    def _prepared(self, kind: str) -> DataModule:
        data = copy(self.data)
        data.prepare(
            kind=kind,
            # A tokenizer of its own: preparing data puts a template on it, which `auto` would then find there.
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
        """`data` is prepared for the method; `reward` is the one that the run's config names."""
        self.named = reward
        plan = data.plan
        self.data_as = DataConversions(
            data=data,
            resolved=resolved,
            context=plan.context,
            completion_tokens=plan.completion_tokens,
            seed=plan.seed,
            made={plan.kind: data},
        )
        self.name, self.tokenizer = resolved.name, data.chat_template.tokenizer

    def __call__(self, method: Method) -> EvalModel | None:
        """None where the policy writes no text."""
        if method.head != "causal":
            return None
        parts = method.parts
        return EvalModel(
            name=self.name,
            model=method.policy,
            tokenizer=self.tokenizer,
            template=parts.template,
            engine=parts.engine,
            environment=parts.environment,
            reward=parts.reward or self._chosen(method),
            reference=parts.reference,
            seed=parts.seed,
            context=self.data_as.context,
            micro_batch_tokens=method.micro_batch_tokens,
            data_as=self.data_as,
        )

    def _chosen(self, method: Method) -> Reward | None:
        """A reward that was asked for, though the method does not learn from it."""
        if self._reward is not None:
            self._reward.to(method.device)
        return self._reward

    @cached_property
    def _reward(self) -> Reward | None:
        return scoring_reward(self.named)


def scoring_reward(named: Deferred[Reward | PreferenceModel] | None) -> Reward | None:
    """The reward of a config, where it gives completions a number; what only compares them gives none."""
    found = named and named.value
    return found if callable(found) else None  # pyright: ignore[reportReturnType]
