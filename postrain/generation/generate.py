"""One generation, from its config to its folder: check → resolve → sample and score → keep → measure.

runs/generate/<model>/<time>-<hash>/
  completions.jsonl   a line for each prompt: what was written, rewards, gold scores; grows chunk by chunk
  data.jsonl          the rows that are kept, for data.path=; whole or absent
  summary.json        how many were right        manifest.json  config.yaml  status.json  result.json
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from torch import nn

from postrain.config.check import instantiate
from postrain.config.extras import check_packages
from postrain.config.trust import Guest, Item, said_by
from postrain.data.module import DataModule
from postrain.data.rendering import clock_at
from postrain.formatting import figure
from postrain.generation.config import Generation, check_generation
from postrain.generation.keep import Answers, Keep, Nothing, Revisions, Row
from postrain.generation.measure import Measured, measure, outcome
from postrain.generation.sample import Sampler, distinct, sample
from postrain.generation.table import table
from postrain.hardware.trainer import Hardware
from postrain.jsonl import JsonLines, atomic_write_text, plain
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.sources import ResolvedModel
from postrain.rollout.engine import Engine, greedy
from postrain.rollout.turns import Environment
from postrain.runs.folder import RunFolder, config_hash, new_directory, writing
from postrain.runs.interrupt import Interrupt
from postrain.runs.manifest import write_manifest
from postrain.runs.resume import check_data, check_model, resumed_config, settings
from postrain.runs.status import Ending
from postrain.types import ConfigError

PROGRAM = ("python", "-m", "postrain.generate")
COMPLETIONS, DATA, SUMMARY = "completions.jsonl", "data.jsonl", "summary.json"


def execute(
    config: Mapping[str, Any],
    *,
    overrides: Sequence[str],
    group: str | None,
    place: Path | None = None,
    trusted: Collection[Item] = (),
) -> float | None:
    """Generates as `config` says, or goes on with the generation it names; returns the share of right completions.

    `place` is where a new folder shall be, if somebody has decided that; `group` is for trackers, and there are none.
    `trusted` is what the command line says besides `config`, of other stages of a pipeline.
    Raises ConfigError for a user's mistake and Interrupted after Ctrl-C or SIGTERM.
    """
    earlier = RunFolder.open(config["resume"]) if config["resume"] else None
    if earlier:
        guest = Guest(earlier.path, said_by(config) | set(trusted))
        config = resumed_config(earlier, config, overrides)
        guest.check(config, Generation)
    check_generation(config)
    check_packages(config)
    hardware: Hardware = instantiate(config["trainer"])
    hardware.check()
    if hardware.ranks > 1:
        raise ConfigError("trainer: a generation runs in one process; use trainer=cpu or trainer=gpu")
    resolved = instantiate(config["model"]).resolve()
    if earlier:
        check_model(earlier, resolved)
    folder = earlier or _new_folder(config, resolved, place)
    with Interrupt(), folder.locked(), Ending(folder.status), clock_at(folder.status.began()):
        with writing(folder.config):
            atomic_write_text(folder.config, OmegaConf.to_yaml(settings(config)), private=True)
        return _generate(config, resolved, hardware, folder, overrides)


def _new_folder(config: Mapping[str, Any], resolved: ResolvedModel, place: Path | None) -> RunFolder:
    if place is None:
        name, digest = config["name"] or "generate", config_hash(settings(config))
        return RunFolder(new_directory(Path(config["paths"]["output"]), name, resolved.name, digest))
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
    return RunFolder(place)


def _generate(
    config: Mapping[str, Any],
    resolved: ResolvedModel,
    hardware: Hardware,
    folder: RunFolder,
    overrides: Sequence[str],
) -> float | None:
    hardware.settle()
    engine: Engine = instantiate(config["rollout"])
    environment: Environment = instantiate(config["environment"])
    data: DataModule = instantiate(config["data"])
    audit = data.prepare(
        kind="Prompt",
        tokenizer=load_tokenizer(resolved),
        context=resolved.context,
        completion_tokens=engine.sampling.max_new_tokens + environment.room,
        batch_size=1,
        updates=1,
        seed=config["seed"],
    )
    if not config["allow_change"]:
        check_data(folder, audit)
    print(
        "\n".join([audit.render(), *(f"note: {note}" for note in data.template.notes), f"folder: {folder.path}"]),
        flush=True,
    )
    write_manifest(
        folder,
        config=config,
        overrides=overrides,
        seeds={"seed": config["seed"]},
        data=audit.to_dict(),
        model={"name": resolved.name, "source": resolved.source, "fingerprint": resolved.fingerprint},
        stand_in_for=resolved.stand_in_for,
        program=PROGRAM,
    )
    items = distinct(data.train if config["part"] == "train" else data.eval, config["prompts"])
    chunks = sample(
        _sampler(config, resolved, hardware, data, engine, environment),
        items,
        JsonLines(folder.path / COMPLETIONS),
        config["chunk"],
    )
    console = Console(highlight=False)
    total = -(-len(items) // config["chunk"])
    shown = track(chunks, "sampling", total=total, console=console, disable=not console.is_terminal, transient=True)
    answers = [one for chunk in shown for one in chunk]
    return _finish(config, answers, folder, console)


def _sampler(
    config: Mapping[str, Any],
    resolved: ResolvedModel,
    hardware: Hardware,
    data: DataModule,
    engine: Engine,
    environment: Environment,
) -> Sampler:
    torch.manual_seed(config["seed"])
    model = cast("nn.Module", load_causal(resolved, dtype=hardware.dtype)).to(hardware.device)
    reward = instantiate(config.get("reward"))
    if reward is not None:
        reward.to(hardware.device)
    keep: Keep = instantiate(config["keep"])
    return Sampler(
        model=model,
        engine=engine,
        greedy=greedy(engine) if config["greedy"] else None,
        data=data,
        reward=reward,
        environment=environment,
        samples=config["samples"],
        principles=keep.principles if isinstance(keep, Revisions) else (),
        part=config["part"],
        seed=config["seed"],
    )


def _finish(config: Mapping[str, Any], answers: Sequence[Answers], folder: RunFolder, console: Console) -> float | None:
    """Writes what is kept and how good it was; prints both."""
    keep: Keep = instantiate(config["keep"])
    rows = [keep(one) for one in answers]
    found = measure(answers, config["threshold"])
    kept = [row for made in rows for row in made]
    prompts = sum(bool(made) for made in rows)
    with writing(folder.path):
        summary = {**plain(asdict(found)), "kept": len(kept), "kept_prompts": prompts}
        atomic_write_text(folder.path / SUMMARY, json.dumps(summary, indent=2) + "\n")
        atomic_write_text(folder.result, json.dumps(plain(outcome(found)), indent=2) + "\n")
    console.print(table(found, len(kept), prompts, scored=config.get("reward") is not None))
    if not isinstance(keep, Nothing):
        if not kept:
            raise _no_rows(keep, found)
        _write_rows(kept, folder.path / DATA)
        console.print(f"data    {folder.path / DATA}", soft_wrap=True)
    return found.sampled.value if found.sampled else None


def _no_rows(keep: Keep, found: Measured) -> ConfigError:
    """Why there is nothing to write; a file without rows would only be a riddle later."""
    ended = f"{found.finished:.0%} came to an end"
    if isinstance(keep, Revisions):
        return ConfigError(
            f"keep: no completion of {found.prompts} prompts was revised ({ended}); raise rollout.max_new_tokens, or "
            "lower it where request, completion, critique and revision do not fit into the model's context"
        )
    best = "none could be scored" if found.best is None else f"their best rewards are {figure(found.best)} on average"
    return ConfigError(
        f"keep: no completion of {found.prompts} prompts is worth keeping ({best}, {ended}); ask less of them "
        "(keep=all, keep.at_least=...), sample more, or raise rollout.max_new_tokens"
    )


def _write_rows(rows: Sequence[Row], path: Path) -> None:
    """The data file, in one piece."""
    with writing(path):
        atomic_write_text(path, "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows))
