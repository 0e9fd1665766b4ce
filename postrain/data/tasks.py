"""Tasks of reasoning-gym as a source of prompts: about 100 generators of reasoning problems, any number of rows.

Rows contain the input of the task's scorer as plain JSON, for `reward=reasoning_gym` (rewards/reasoning_gym.py) and for
files made from them. A hash of the prompt assigns it to training or held-out rows. Not included: tasks whose scorer is
unsafe or incorrect for model output (REFUSED), and `composite`, which combines other tasks.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng

from postrain.config.extras import load
from postrain.data.readers import Row, Table
from postrain.data.sources import Loaded, Source
from postrain.errors import ConfigError, one_line
from postrain.seeds import derive_seed
from postrain.suggestions import did_you_mean
from postrain.types import Seed, Size
from postrain.world.items import Split, split_of

COLUMN = "reasoning_gym"
"""The column that `reward=reasoning_gym` reads."""
RUNS_TEXT = "its scorer runs the completion as Python code"
NEEDS_TUPLES = "its scorer does not accept its own items after a conversion to JSON"
REFUSED: Mapping[str, str] = {
    "arc_agi": NEEDS_TUPLES,
    "coin_flip": "its scorer rewards the answer 0",
    "complex_arithmetic": "its scorer rewards the answer nan",
    "composite": "it mixes other tasks; name one of them",
    "game_of_life_halting": "its scorer rewards any answer",
    "intermediate_integration": RUNS_TEXT,
    "n_queens": RUNS_TEXT,
    "polynomial_multiplication": RUNS_TEXT,
    "rearc": NEEDS_TUPLES,
    "simple_integration": RUNS_TEXT,
    "string_insertion": RUNS_TEXT,
}
HASHED = ("isomorphic_strings", "knight_swap", "ransom_note", "word_ladder")
"""Tasks that iterate over sets, whose order changes with Python's hash seed."""
# One item in ten is held out: draws per requested item, plus MORE_DRAWS.
DRAWS: Mapping[Split, int] = {"train": 2, "eval": 20}
MORE_DRAWS = 200


@dataclass(frozen=True, kw_only=True)
class ReasoningGym(Source):
    """One of reasoning-gym's tasks."""

    task: str = "chain_sum"
    """Name of the reasoning-gym task, such as chain_sum or lcm."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The task's own configuration, for instance {min_terms: 2, max_terms: 3, max_digits: 1} of chain_sum."""
    kind: Literal["prompts", "demonstrations"] = "prompts"
    """prompts, or demonstrations whose completion is `reply`."""
    count: Size = 2000
    """Maximum number of training rows; tasks with few different prompts have fewer."""
    seed: Seed = 0
    """Seed of the rows."""
    instruction: str = ""
    """Text appended to each question."""
    reply: str = "{answer}"
    """Completion of demonstrations; {answer} is replaced by the answer."""

    def load(self, *, eval_rows: int) -> Loaded:
        if "{answer}" not in self.reply:
            raise ConfigError(f"data.source.reply={self.reply!r}: expected a text with {{answer}} in it")
        return Loaded(
            self._table("train", self.count),
            self._table("eval", eval_rows),
        )

    def _table(self, side: Split, count: int) -> Table:
        name = f"reasoning-gym's {self.task} ({side})"
        draws = DRAWS[side] * count + MORE_DRAWS
        items = self._items(side, count, draws)
        if not items:
            raise ConfigError(
                f"{name}: none of {draws} draws; these settings generate too few different prompts to hold some out; "
                "set harder ones in data.source.settings"
            )
        return Table(name, "row", tuple(Row(number, self._values(item)) for number, item in enumerate(items)))

    def _items(self, side: Split, count: int, draws: int) -> list[dict[str, Any]]:
        """The first `count` items of a side; held-out questions differ. Leaves the global generators unchanged."""
        seed = derive_seed(self.seed, side) % 2**31
        found: dict[int | str, dict[str, Any]] = {}
        with isolate_rng(include_cuda=False):
            made = dataset(self.task, self.settings, seed=seed, size=draws)
            for index in range(draws):
                item = draw_item(made, seed, index)
                if split_of(item["question"]) == side:
                    found.setdefault(index if side == "train" else item["question"], item)
                if len(found) == count:
                    break
        return list(found.values())

    def _values(self, item: Mapping[str, Any]) -> dict[str, Any]:
        values = {
            "prompt": item["question"] + self.instruction,
            "answer": item["answer"],
            COLUMN: {"task": self.task, "settings": dict(self.settings), "entry": dict(item)},
        }
        if self.kind == "prompts":
            return values
        if not isinstance(item["answer"], str):
            raise ConfigError(f"data.source.kind=demonstrations: {self.task} states no answers; use prompts")
        return {**values, "completion": self.reply.replace("{answer}", item["answer"])}


def draw_item(made: Any, seed: int, index: int) -> dict[str, Any]:
    """An item as plain values. Seeds the global generators, which some tasks use instead of their own seed."""
    random.seed(seed + index)
    np.random.seed(seed + index)
    return json.loads(json.dumps(made[index]))


def dataset(task: str, settings: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """A task of reasoning-gym, checked; errors name the config keys."""
    gym = load("reasoning_gym")
    known: Mapping[str, tuple[type, type]] = gym.factory.DATASETS
    if task in REFUSED:
        raise ConfigError(f"data.source.task={task}: left out, since {REFUSED[task]}; choose another task")
    if task not in known:
        meant = did_you_mean(task, known, f"there are {', '.join(sorted(known))}")
        raise ConfigError(f"data.source.task={task}: reasoning-gym has no such task; {meant}")
    if task in HASHED and os.environ.get("PYTHONHASHSEED", "random") == "random":
        raise ConfigError(
            f"data.source.task={task}: its items change with Python's hash seed, so a resumed run would differ; "
            "set the environment variable PYTHONHASHSEED=0"
        )
    there = {field.name for field in fields(known[task][1])} - {"seed", "size"}
    if unknown := [name for name in settings if name not in there]:
        names = ", ".join(sorted(there))
        raise ConfigError(f"data.source.settings.{unknown[0]}: {task} has no such setting; there are {names}")
    try:
        return gym.create_dataset(task, **settings, seed=seed, size=size)
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"data.source.settings: {task} refuses them: {one_line(error, limit=None)}") from None
