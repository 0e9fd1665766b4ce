"""Scripted models: nano's tokenizer, the world's sums, and an engine without a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from postrain.config.tree import instantiate
from postrain.data.chat import Template
from postrain.data.module import DataModule
from postrain.evaluation.eval_model_factory import DataConversions
from postrain.evaluation.task import EvalModel
from postrain.rewards.base import none_to_nan
from postrain.rollout.environment import SINGLE_TURN
from postrain.types import Completion, RewardBatch, Sampling, Stop
from tests.training_runs import composed

PROMPTS = 3
ANY: Any = None


@dataclass(frozen=True)
class Writer:
    """Continues a text with an item of `continuations(text)`: the n-th call with the n-th item, greedy calls with the
    first. Every token has probability e^-½."""

    template: Template
    continuations: Callable[[str], Sequence[str]]
    temperature: float = 1.0
    calls: Counter[str] = field(default_factory=Counter)
    exact_logps: bool = True

    @property
    def sampling(self) -> Sampling:
        return Sampling(64, self.temperature)

    def generate(self, model: Any, prompts: Sequence[torch.Tensor], *, seeds: Sequence[int], stop: Stop) -> list:
        return [self._one(self.template.decode_all(prompt.tolist()), stop) for prompt in prompts]

    def _one(self, text: str, stop: Stop) -> Completion:
        found = self.continuations(text)
        number = self.calls[text] if self.temperature else 0
        self.calls[text] += 1 if self.temperature else 0
        ids = [*self.template.encode_continuation(found[number % len(found)]).tolist(), self.template.stop_ids[0]]
        ends = (at for at in range(1, len(ids)) if any(t in self.template.decode_all(ids[:at]) for t in stop.texts))
        whole = torch.tensor(ids[: next(ends, len(ids))])
        return Completion(whole, torch.full((len(whole),), -0.5), True)


@dataclass(frozen=True)
class TableReward:
    """An outcome and process reward from a table: the score of the first key that a completion contains."""

    scores: Mapping[str, float]

    def __call__(self, prompts: Any, completions: Sequence[str], columns: Any) -> RewardBatch:
        return RewardBatch(none_to_nan([self.score(completion) for completion in completions]), {})

    def step_scores(self, prompts: Any, completions: Sequence[str], columns: Any) -> list[tuple[float, ...]]:
        return [
            () if self.score(completion) is None else (self.score(completion) or 0.0,) for completion in completions
        ]

    def to(self, device: Any) -> None: ...

    def score(self, completion: str) -> float | None:
        return next((value for text, value in self.scores.items() if text in completion), None)


@cache
def nano(*overrides: str) -> tuple[DataConversions, Any]:
    """The data of a command line, encoded with nano's tokenizer, and nano's source."""
    config = composed(["method=grpo", f"data.eval_rows={PROMPTS}", "data.source.count=12", *overrides])
    resolved = instantiate(config["model"]).resolve()
    return DataConversions(
        data=instantiate(config["data"]), resolved=resolved, context=512, completion_tokens=64, seed=0
    ), resolved


def sums() -> DataModule:
    """Prompts of sums: the first held-out ones."""
    return nano("data=world_sums")[0]("Prompt")


def eval_model(continuations: Callable[[str], Sequence[str]], *overrides: str, **changes: Any) -> EvalModel:
    """An EvalModel with a scripted engine."""
    view, _ = nano(*(overrides or ("data=world_sums",)))
    template = view("Prompt").chat_template
    given: dict[str, Any] = {
        "engine": Writer(template, continuations),
        "reward": None,
        "model": nn.Linear(1, 1),
        **changes,
    }
    return EvalModel(
        name="scripted",
        tokenizer=template.tokenizer,
        template=template,
        environment=SINGLE_TURN,
        reference=None,
        seed=0,
        context=512,
        micro_batch_tokens=4096,
        data_as=view,
        **given,
    )


def make_task(name: str, **changes: Any) -> Any:
    """A task from its YAML, with these keys changed."""
    return replace(_settings(name), **{"prompts": PROMPTS, **changes})


@cache
def _settings(name: str) -> Any:
    return instantiate(composed(["method=grpo", f"evaluation={name}"])["evaluation"]["tasks"][name])


def correct_and_wrong() -> Callable[[str], Sequence[str]]:
    """For each sum the correct answer, and an answer that is too large by one."""
    answers = {text: int(row["answer"]) for text, row in zip(*_held_out(), strict=True)}

    def continuations(prompt: str) -> Sequence[str]:
        return (f" The answer is {answers[prompt]}.", f" The answer is {answers[prompt] + 1}.")

    return continuations


def correct_answers() -> list[str]:
    """Texts that the correct completions of `correct_and_wrong` contain."""
    return [f"is {columns['answer']}." for columns in sums().eval_prompts(PROMPTS).columns]


def scores(points: Any) -> list[float]:
    """The scores of a curve."""
    return [point.score.value for point in points]


def _held_out() -> tuple[tuple[str, ...], tuple[Mapping[str, Any], ...]]:
    prompts = sums().eval_prompts(PROMPTS)
    return prompts.texts, prompts.columns
