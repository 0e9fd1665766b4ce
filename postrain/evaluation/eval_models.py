"""The models of an evaluation: found, told apart by a name, and loaded one after the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from postrain.config.check import instantiate
from postrain.evaluation.completions import as_prompts
from postrain.evaluation.config import START
from postrain.evaluation.inherited_settings import Origin
from postrain.evaluation.measures import Subject
from postrain.evaluation.views import Views
from postrain.hardware.trainer import Hardware
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.named import named
from postrain.models.reference import Reference
from postrain.models.sources import ResolvedModel
from postrain.rollout.engine import Engine
from postrain.rollout.turns import Environment
from postrain.types import ConfigError

# What postrain.runs.folder calls a run: its time, a hash of its config, and a number where two began in one second.
MADE = re.compile(r"[\d-]+_[\d-]+-([0-9a-f]{8}(?:-\d+)?)")


@dataclass(frozen=True, kw_only=True)
class Examinee:
    """A model that is to be measured."""

    name: str
    """Its own among those that are compared."""
    path: str
    """As the user wrote it."""
    resolved: ResolvedModel
    origin: Origin | None
    """The run it comes from."""


def examinees(config: Mapping[str, Any]) -> list[Examinee]:
    """The model and those it is compared with. Raises ConfigError for one that is not there or cannot write."""
    path = config["model"]["path"]
    found = [(path, instantiate(config["model"]).resolve())]
    found += [(other, named("compare", other, "run folders, model directories")) for other in config["compare"]]
    keys = ["model.path", *["compare"] * len(config["compare"])]
    for key, (path, resolved) in zip(keys, found, strict=True):
        if resolved.head == "scalar":
            raise ConfigError(
                f"{key}={path}: a reward model, which cannot write; give a language model, and see a reward model's "
                "own accuracy in its run's report"
            )
    names = distinct_names([path for path, _ in found], [resolved.name for _, resolved in found])
    return [
        Examinee(name=name, path=path, resolved=resolved, origin=Origin.of(path))
        for name, (path, resolved) in zip(names, found, strict=True)
    ]


def distinct_names(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """Each model's name; where several share one, with the folder of their run, and with a number if need be."""
    longer = [
        name if list(names).count(name) == 1 else f"{name} {run_name(path)}"
        for path, name in zip(paths, names, strict=True)
    ]
    return [
        name if longer.count(name) == 1 else f"{name} ({longer[:place].count(name) + 1})"
        for place, name in enumerate(longer)
    ]


def run_name(path: str) -> str:
    """What tells one run from another of the same method and model: the hash in its folder's name, else the name."""
    place = Path(path)
    name = place.parent.name if place.name == "model" else place.name
    made = MADE.fullmatch(name)
    return made[1] if made else name


def load(one: Examinee, config: Mapping[str, Any], hardware: Hardware, seed: int) -> Subject:
    """Its weights with everything it takes to ask it; `seed` splits the data."""
    engine: Engine = instantiate(config["rollout"])
    environment: Environment = instantiate(config["environment"])
    tokenizer = load_tokenizer(one.resolved)
    view = Views(
        node=config["data"],
        resolved=one.resolved,
        context=one.resolved.context,
        completion_tokens=engine.sampling.max_new_tokens + environment.room,
        seed=seed,
    )
    torch.manual_seed(config["seed"])
    model = cast("nn.Module", load_causal(one.resolved, dtype=hardware.dtype)).to(hardware.device).eval()
    reward: Any = instantiate(config.get("reward"))
    if reward is not None:
        reward.to(hardware.device)
    return Subject(
        name=one.name,
        model=model,
        tokenizer=tokenizer,
        template=as_prompts(view).template,
        engine=engine,
        environment=environment,
        # What only compares completions gives none a number.
        reward=reward if callable(reward) else None,  # pyright: ignore[reportArgumentType]
        reference=reference_of(one, config, hardware, model, tokenizer),
        seed=config["seed"],
        context=one.resolved.context,
        micro_batch_tokens=config["micro_batch_tokens"],
        view=view,
    )


def reference_of(
    one: Examinee, config: Mapping[str, Any], hardware: Hardware, model: nn.Module, tokenizer: Any
) -> Reference | None:
    """What KL is measured against. Raises ConfigError for a named one that cannot be compared with."""
    chosen = config["reference"]
    if chosen is None or (chosen == START and one.origin is None):
        return None
    if chosen == START:
        assert one.origin is not None
        found, path = one.origin.start(), START
    else:
        found, path = named("reference", chosen, "a directory, a run folder"), chosen
    if found.head == "scalar":
        raise ConfigError(f"reference={path}: a reward model gives no log-probabilities to compare; give another")
    if load_tokenizer(found).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(
            f"reference={path}: its vocabulary is not that of {one.name}, and log-probabilities can be compared over "
            "the same tokens only; give a model of the same family, or reference=null"
        )
    other = cast("nn.Module", load_causal(found, dtype=hardware.dtype)).to(hardware.device)
    return Reference(model, other.requires_grad_(False), says=f"reference: {found.name}")
