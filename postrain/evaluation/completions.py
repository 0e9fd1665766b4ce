"""Completions of held-out prompts, and what is read off them: for the look that every run takes at itself, and for the
measures. Prompts and seeds are the same each time, so that two evaluations differ by the model alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from postrain.data.kinds.prompt import Prompts
from postrain.data.module import DataModule
from postrain.evaluation.measures import Subject
from postrain.models.scoring import Comparison, compare, in_micro_batches
from postrain.rewards.function import is_finite, shown, told
from postrain.rewards.user_code import Blame, place
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.engine import greedy
from postrain.seeds import derive_seed
from postrain.types import ConfigError, Mean


def held_out(subject: Subject) -> DataModule:
    """The data as prompts to complete."""
    return as_prompts(subject.view)


def as_prompts(view: Callable[[str], DataModule]) -> DataModule:
    """The data as prompts; of running text, the beginning of each text. Raises ConfigError where it is neither."""
    try:
        return view("Prompt")
    except ConfigError as error:
        try:
            return view("Text")
        except ConfigError:
            raise error from None


@torch.no_grad()
def complete(subject: Subject, count: int, *, likeliest: bool = False, prompts: Prompts | None = None) -> Rollouts:
    """The first `count` held-out prompts continued, greedily where `likeliest`; `prompts` are these, if known.

    Whoever asks a subject again gets the same rollouts.
    """
    engine = greedy(subject.engine) if likeliest else subject.engine
    asked = count, engine.sampling.temperature
    if asked not in subject.drawn:
        prompts = held_out(subject).eval_prompts(count) if prompts is None else prompts
        subject.drawn[asked] = collect(
            engine,
            subject.model,
            subject.template,
            prompts,
            seeds=[derive_seed(subject.seed, "evaluation", place) for place in range(len(prompts))],
            reward=subject.reward,
            environment=subject.environment,
        )
    return subject.drawn[asked]


@torch.no_grad()
def compared(subject: Subject, rollouts: Rollouts) -> Comparison:
    """The model and its reference, which there has to be, on what the model wrote, at the temperature it was drawn."""
    reference = subject.reference
    assert reference is not None
    return in_micro_batches(
        lambda rows: compare(subject.model, reference, rows, temperature=subject.engine.sampling.temperature or 1.0),
        rollouts.rows,
        subject.micro_batch_tokens,
    )


def gold_scores(rollouts: Rollouts, data: DataModule) -> tuple[Mapping[str, float], ...]:
    """What the world says of each completion. Raises ConfigError where a gold function fails or gives no numbers."""
    if data.gold_score is None:
        return tuple({} for _ in rollouts.completions)
    return tuple(
        _gold(data.gold_score, prompt, completion, columns) if "gold" in columns else {}
        for prompt, completion, columns in zip(rollouts.prompts, rollouts.completions, rollouts.columns, strict=True)
    )


def _gold(
    function: Callable[..., Mapping[str, float]], prompt: str, completion: str, columns: Mapping[str, Any]
) -> dict[str, float]:
    who = f"data.gold: {function.__module__}.{getattr(function, '__qualname__', function)}"
    asked = told(0, [prompt], [columns])
    with Blame(f"{who} raised", place(function)[0], lambda: f" on {asked}"):
        found: Any = function(prompt, completion, columns["gold"])
    if not isinstance(found, Mapping) or not all(map(is_finite, found.values())):
        raise ConfigError(f"{who}: returned {shown(found)} for {asked}; expected finite numbers by name")
    return {str(part): float(value) for part, value in found.items()}


def means(gold: Sequence[Mapping[str, float]]) -> dict[str, Mean]:
    """Each part of the gold score over the completions that have it."""
    return {part: Mean(sum(known), len(known)) for part, known in by_part(gold).items()}


def by_part(scores: Sequence[Mapping[str, float | None]]) -> dict[str, list[float]]:
    """The scores of each part that are known, by its name."""
    parts = sorted({name for one in scores for name in one})
    known = {part: [value for one in scores if (value := one.get(part)) is not None] for part in parts}
    return {part: values for part, values in known.items() if values}


def asked_text(subject: Subject, ids: torch.Tensor) -> str:
    """Token ids as the model is given them, special tokens and all."""
    return subject.template.decode_all(ids.tolist())


def first_prompt(subject: Subject, rollouts: Rollouts) -> str:
    """The exact text of the first prompt that was completed."""
    learned = rollouts.rows.supervised[0].long()
    at = int(learned.argmax()) if int(learned.max()) else len(learned)
    return asked_text(subject, rollouts.rows.ids[0][:at])
