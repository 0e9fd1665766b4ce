"""The end of a run: exports the model as a Hugging Face directory and writes result.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from postrain.data.kinds.steps import LAYOUT_FILE, Steps
from postrain.formatting import figure, markdown_table
from postrain.jsonl import atomic_write_text, number, plain
from postrain.methods.base import Method
from postrain.metrics import Direction, deciding_metric, direction_of
from postrain.models import card
from postrain.models.export import base_of_adapter, export
from postrain.models.sources import ModelSource, ResolvedModel
from postrain.runs.folder import RunFolder, writing
from postrain.training.components import Components
from postrain.training.config import TrainConfig

STEP_SCORES = f"""
This process reward model scores steps: the probability that a step is correct is the sigmoid of
`model.score(model.base_model(ids).last_hidden_state)` at its last token (joiner and separator in `{LAYOUT_FILE}`).
`reward=process` computes it.
"""


def finalize(config: TrainConfig, components: Components, folder: RunFolder) -> float | None:
    """Exports and writes result.json; returns the last value of the method's headline metric."""
    method = components.method
    changes = before_and_after(folder.metrics.read())
    text = model_card(components, config, folder, changes)
    ends, files = components.data.chat_template.stop_ids, step_layout_file(components)
    export(method.policy, components.tokenizer, folder.model, card=text, end_ids=ends, files=files)
    console = Console(highlight=False)
    console.print(f"model   {folder.model}", soft_wrap=True)
    if method.stop_reason:
        console.print(f"ended early: {method.stop_reason}", soft_wrap=True)
    write_result(method, folder, changes)
    final = changes.get(method.headline[2])
    return None if final is None else final[1]


def write_result(method: Method, folder: RunFolder, changes: Mapping[str, tuple[float, float]]) -> None:
    """Writes result.json, which sweeps and comparisons read."""
    metric, direction = objective_metric(type(method), changes)
    parameters = list(method.policy.parameters())
    result = {
        "metric": metric,
        "direction": direction,
        "objective": changes[metric][1] if metric in changes else None,
        "headline": method.headline,
        "changes": changes,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "updates": method.counters.updates,
        "stopped": method.stop_reason or None,
    }
    with writing(folder.result):
        atomic_write_text(folder.result, json.dumps(plain(result), indent=1) + "\n")


def objective_metric(method: type[Method], measured: Mapping[str, Any]) -> tuple[str, Direction]:
    """The metric that runs are compared by, with its direction; the method's own metric if nothing was measured."""
    name, margin = method.expected_change
    last = method.headline[2]
    own: list[tuple[str, Direction]] = [(name, "max" if margin > 0 else "min"), (last, direction_of(last))]
    return deciding_metric(own, measured) or own[0]


def step_layout_file(components: Components) -> dict[str, str]:
    """The extra file of a process reward model: the step layout it was trained with."""
    of_steps = components.method.kind == Steps.__name__ and components.method.head == "scalar"
    return {LAYOUT_FILE: components.data.steps.to_json()} if of_steps else {}


def before_and_after(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[float, float]]:
    """The first and the last value of every metric that evaluations measured."""
    found: dict[str, tuple[float, float]] = {}
    for record in records:
        for name, value in record.items():
            known = number(value)
            if known is not None and name.startswith(("eval/", "gold/")):
                found[name] = (found[name][0] if name in found else known, known)
    return dict(sorted(found.items()))


def model_card(
    components: Components, config: TrainConfig, folder: RunFolder, changes: Mapping[str, tuple[float, float]]
) -> str:
    """README.md of the exported model: its origin, its metrics and how to load it.

    `report/model_card.py` adds the intervals of the metrics, which need the samples of the finished run.
    """
    method, resolved = components.method, config.resolved
    name, scalar = type(method).__name__, method.head == "scalar"
    loaded_with = base_of_adapter(method.policy)
    adapted = loaded_with is not None
    base = base_model(config.model, resolved, adapted=adapted)
    known = card.metadata((resolved.adapters or (resolved.directory,))[-1])
    repository = getattr(config.data.source, "repo", None)
    data = card.front_matter(
        kind="adapter" if adapted else "weights",
        base_model=base,
        license=known.get("license"),
        tags=[name.lower(), *(["lora"] if hasattr(method.policy, "peft_config") else [])],
        datasets=[repository] if repository else [],
        scalar=scalar,
    )
    rows = [(name, figure(before), figure(after)) for name, (before, after) in changes.items()]
    stand_in = (
        f"\n\n> **{resolved.name} stood in for {resolved.stand_in_for}**, which was not available: this is not a "
        f"fine-tuned {resolved.stand_in_for}."
        if resolved.stand_in_for
        else ""
    )
    intro = f"""{resolved.name}, trained for {method.counters.updates} updates with {name} in postrain.{stand_in}

Data fingerprint: `{components.audit.fingerprint}`. `manifest.json` of the run folder holds the config, package versions
and the command.
{STEP_SCORES if step_layout_file(components) else ""}"""
    sections = {
        card.HELD_OUT: markdown_table(("held-out", "before", "after"), rows, numbers=(1, 2)),
        card.LOADING: card.loading("adapter" if adapted else "weights", scalar=scalar, base=base or loaded_with or ""),
    }
    return card.render(data, folder.name, sections, intro)


def base_model(source: ModelSource, resolved: ResolvedModel, *, adapted: bool) -> str | None:
    """The name on the Hub of the model that was trained, or of the one that it was trained from; None if unknown.

    For an adapter it is the model with which it is loaded, so never the one that weights in a folder were trained from.
    """
    if resolved.stand_in_for is None and card.HUB_ID.fullmatch(source.path) and not Path(source.path).exists():
        return source.path
    if adapted and not resolved.adapters:
        return None
    return card.metadata((resolved.adapters or (resolved.directory,))[-1]).get("base_model")
