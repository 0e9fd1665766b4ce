"""The subject of an evaluation while a method trains: its policy as it is now, with the run's own parts."""

from __future__ import annotations

from functools import cached_property

from postrain.config.schema import Deferred
from postrain.data.module import DataModule
from postrain.evaluation.measures import Subject
from postrain.evaluation.views import Views
from postrain.methods.base import Method
from postrain.models.sources import ResolvedModel
from postrain.rewards.base import Preference, Reward


class InTraining:
    """Makes the subject of each evaluation of a run."""

    def __init__(
        self, resolved: ResolvedModel, data: DataModule, reward: Deferred[Reward | Preference] | None = None
    ) -> None:
        """`data` is prepared for the method; `reward` is the one that the run's config names."""
        self.named = reward
        plan = data.plan
        self.view = Views(
            data=data,
            resolved=resolved,
            context=plan.context,
            completion_tokens=plan.completion_tokens,
            seed=plan.seed,
            made={plan.kind: data},
        )
        self.name, self.tokenizer = resolved.name, data.chat_template.tokenizer

    def __call__(self, method: Method) -> Subject | None:
        """None where the policy writes no text."""
        if method.head != "causal":
            return None
        parts = method.parts
        return Subject(
            name=self.name,
            model=method.policy,
            tokenizer=self.tokenizer,
            template=parts.template,
            engine=parts.engine,
            environment=parts.environment,
            reward=parts.reward or self._chosen(method),
            reference=parts.reference,
            seed=parts.seed,
            context=self.view.context,
            micro_batch_tokens=method.micro_batch_tokens,
            view=self.view,
        )

    def _chosen(self, method: Method) -> Reward | None:
        """A reward that was asked for, though the method does not learn from it."""
        if self._reward is not None:
            self._reward.to(method.device)
        return self._reward

    @cached_property
    def _reward(self) -> Reward | None:
        return scored_by(self.named)


def scored_by(named: Deferred[Reward | Preference] | None) -> Reward | None:
    """The reward of a config, where it gives completions a number; what only compares them gives none."""
    found = named and named.value
    return found if callable(found) else None  # pyright: ignore[reportReturnType]
