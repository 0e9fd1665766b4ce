"""Data modules of an option of `data` with overrides, with the bundled nano tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from postrain.config.arguments import resolved
from postrain.config.tree import complete, instantiate
from postrain.data.module import DataModule
from tests.training_runs import CONF, forced

NANO = CONF.parent / "postrain" / "assets" / "nano"
DEMONSTRATIONS = [
    {"prompt": f"Tell me about thing number {n}.", "completion": f"It is {n % 3} and it is green.", "task": "ab"[n % 2]}
    for n in range(30)
]


@dataclass
class Data:
    """The config of the `data` group."""

    data: DataModule


@cache
def config(option: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return resolved(complete(compose(f"data/{option}", forced(overrides)), Data))["data"]


def module(option: str, *overrides: str) -> DataModule:
    small = ("data.source.count=30",) if option.startswith("world") else ()
    return instantiate(config(option, "data.eval_rows=6", *small, *overrides))


def prepared(option: str, *overrides: str, kind: str = "Demonstration", **changes: Any) -> DataModule:
    data = module(option, *overrides)
    settings: dict[str, Any] = {"context": 512, "batch_size": 4, "updates": 3, "seed": 0, "completion_tokens": 16}
    # The data module sets the tokenizer's template, so each test gets a separate tokenizer.
    data.prepare(kind=kind, tokenizer=AutoTokenizer.from_pretrained(NANO), **(settings | changes))
    return data
