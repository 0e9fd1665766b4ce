"""EvalModels for tests of tasks: a tiny model, a scripted engine, given prompts and texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.evaluation.task import EvalModel
from postrain.models.reference import Reference
from postrain.rollout.environment import SINGLE_TURN
from postrain.types import Sampling
from tests.engines import text
from tests.methods.builders import ScriptedEngine, float64_model

TEMPLATE: Any = SimpleNamespace(decode=text, decode_all=text, stop_ids=(0,), name="plain")


@dataclass
class GreedyScriptedEngine(ScriptedEngine):
    """A scripted engine that can be made greedy."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        self.sampling = Sampling(16, self.temperature)


def make_prompts(count: int, **columns: Sequence[Any]) -> Prompts:
    """Prompts of one token each, with these columns."""
    return Prompts(
        ids=tuple(torch.tensor([1 + index]) for index in range(count)),
        texts=tuple(f"prompt {index}" for index in range(count)),
        columns=tuple({name: values[index] for name, values in columns.items()} for index in range(count)),
        row_ids=tuple(range(count)),
    )


def eval_model(
    completions: Sequence[Sequence[int]] = ((5, 0),),
    prompts: Prompts | None = None,
    items: Mapping[str, Sequence[Any]] | None = None,
    **parts: Any,
) -> Any:
    """A model whose engine returns `completions`; `items` are the held-out records by kind."""
    model = float64_model()
    known = make_prompts(2) if prompts is None else prompts
    views = {kind: SimpleNamespace(eval=held_out, gold_score=None) for kind, held_out in (items or {}).items()}
    views["Prompt"] = SimpleNamespace(
        eval_prompts=lambda count: known.select(range(min(count, len(known)))), gold_score=gold
    )

    def view(kind: str) -> Any:
        if kind not in views:
            raise ConfigError(f"no {kind} here")
        return views[kind]

    defaults: dict[str, Any] = {
        "name": "tiny",
        "model": model,
        "tokenizer": SimpleNamespace(eos_token_id=0),
        "template": TEMPLATE,
        "engine": GreedyScriptedEngine(completions),
        "environment": SINGLE_TURN,
        "reward": None,
        "reference": Reference.for_policy(model),
        "seed": 0,
        "context": 64,
        "micro_batch_tokens": 64,
        "data_as": view,
    }
    return EvalModel(**(defaults | parts))


def gold(prompt: str, completion: str, specification: Mapping[str, float]) -> Mapping[str, float]:
    """Returns the gold column as the gold score."""
    return specification
