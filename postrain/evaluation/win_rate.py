"""Win rate against another model's completions of the same prompts, by gold score, reward or judge."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from torch import nn

from postrain.data.chat import Template
from postrain.data.kinds.prompt import Prompt, Prompts
from postrain.data.module import DataModule
from postrain.data.records import convert
from postrain.errors import ConfigError
from postrain.evaluation.completion_metrics import completion_records
from postrain.evaluation.completions import complete, first_prompt, gold_scores, held_out, preferences, reward_totals
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.models.by_name import resolve_by_name
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.sources import ResolvedModel
from postrain.rewards.base import PreferenceModel, Reward
from postrain.rollout.collect import Rollouts
from postrain.types import Count, Sampling

KEY = "evaluation.tasks.win_rate.against"
NEEDED = "needs data with gold scores, a reward (reward=NAME) or a judge (evaluation.tasks.win_rate.judge)"


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """The share of held-out prompts on which this model's completion beats the other's; a tie counts half.

    The other model completes the same prompts with the same seeds, in this model's chat template if it has none.
    """

    against: str
    """A run folder, a model directory, or an option of the model group such as nano."""
    judge: Reward | PreferenceModel | None = None
    """A reward, which compares by score, or a preference. null is the data's gold score, else the run's reward."""
    prompts: Count = 64
    """Maximum number of held-out prompts; one completion each."""

    def check(self, sampling: Sampling) -> None:
        """See `PreflightCheck`."""
        _ = self._other

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        data = held_out(eval_model)
        ours = complete(eval_model, self.prompts)
        theirs = self._theirs(eval_model, data)
        found = self._points(eval_model, data, ours, theirs)
        known = [points for points in found if points is not None]
        if not known:
            return EvalResult(metrics={}, notes=(NEEDED,))
        records = [
            {"win_rate": points, "other": other} for points, other in zip(found, theirs.completions, strict=True)
        ]
        return EvalResult(
            metrics={"win_rate": Estimate.share(known)},
            example=first_prompt(eval_model, ours),
            records=completion_records(ours, records),
            notes=(f"against {self._other.name}, judged by {self._judged_by(eval_model, knows_gold(data, ours))}",),
        )

    @cached_property
    def _other(self) -> ResolvedModel:
        found = resolve_by_name(KEY, self.against, "a run folder, a model directory")
        if found.head == "scalar":
            raise ConfigError(f"{KEY}={self.against}: a reward model cannot generate text; give a language model")
        return found

    def _theirs(self, eval_model: EvalModel, data: DataModule) -> Rollouts:
        """The other model's completions: sampled anew at every evaluation, since caching its weights costs memory."""
        device = next(eval_model.model.parameters()).device
        dtype = next(eval_model.model.parameters()).dtype
        model = cast("nn.Module", load_causal(self._other, dtype=dtype)).to(device)
        tokenizer: Any = load_tokenizer(self._other)
        template = same_template(eval_model.template, tokenizer)
        prompts = data.eval_prompts(self.prompts)
        opponent = replace(
            eval_model, model=model, tokenizer=tokenizer, template=template, reward=None, rollout_cache={}
        )
        return complete(opponent, self.prompts, prompts=encoded_for(template, prompts, data))

    def _points(self, eval_model: EvalModel, data: DataModule, ours: Rollouts, theirs: Rollouts) -> list[float | None]:
        """Per prompt: 1 for a win, ½ for a tie, 0 for a loss, or the preference's probability; None if unknown."""
        judge = self.judge
        if isinstance(judge, PreferenceModel):
            return preferences(judge, ours, theirs)
        if judge is None and knows_gold(data, ours):
            scores = [[one.get("total") for one in gold_scores(rollouts, data)] for rollouts in (ours, theirs)]
        else:
            reward = judge or eval_model.reward
            unknown = [None] * len(ours)
            scores = [
                unknown if reward is None else reward_totals(reward, rollouts, rollouts.completions)
                for rollouts in (ours, theirs)
            ]
        return [win_points(one, other) for one, other in zip(*scores, strict=True)]

    def _judged_by(self, eval_model: EvalModel, gold: bool) -> str:
        judge = self.judge or (None if gold else eval_model.reward)
        return "the gold score" if judge is None else type(judge).__name__


def knows_gold(data: DataModule, rollouts: Rollouts) -> bool:
    """Whether any of the rows has a gold score: rows of a user's file may lack the gold column."""
    return data.gold_score is not None and any("gold" in columns for columns in rollouts.columns)


def win_points(one: float | None, other: float | None) -> float | None:
    """1 for a win, ½ for a tie, 0 for a loss."""
    if one is None or other is None:
        return None
    return 0.5 if one == other else float(one > other)


def same_template(template: Template, tokenizer: Any) -> Template:
    """The model's template for another model's tokenizer; a chat model uses its own chat template."""
    mode = "auto" if template.name == "chat" else template.name
    return Template(tokenizer, mode=mode, seed=template.seed)


def encoded_for(template: Template, prompts: Prompts, data: DataModule) -> Prompts:
    """The same prompts encoded for another model; for running text, the beginnings of the texts."""
    held_out = {record.row: record for record in data.records.held_out}
    records = [held_out[row] for row in prompts.row_ids]
    if data.spec.kind == "Text":
        return replace(prompts, ids=tuple(template.encode_text(text) for text in prompts.texts))
    converted = convert(records, Prompt.__name__, source="the held-out rows").records
    ids = tuple(
        template.encode_prompt(record.prompt, row=record.row) for record in converted if isinstance(record, Prompt)
    )
    return replace(prompts, ids=ids)
