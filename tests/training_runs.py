"""Tiny runs in this process, composed as the command line composes them, for tests of whole runs."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from lightning.pytorch import Callback
from omegaconf import DictConfig, OmegaConf

import postrain as pt
from postrain.cli.main import root_of
from postrain.config.references import with_references
from postrain.config.tree import completed, parse
from postrain.hardware.checkpoint_io import FileCheckpointIO
from postrain.jobs.session import TRAIN, execute
from postrain.runs.folder import RunFolder
from postrain.training import train as run_module
from postrain.training.config import TrainConfig
from tests.fast_compose import CONF

TEACHER = "POSTRAIN_TEST_TEACHER"
ONE_LAYER = "POSTRAIN_TEST_ONE_LAYER"
"""Environment variables with the folders of models that a process makes for itself and its children."""
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))

# Three updates on few rows: the smallest run that uses every component.
SMALL = (
    "method.updates=3",
    "method.batch_size=8",
    "evaluation=quick",
    "evaluation.completions=4",
    "data.eval_rows=8",
    "data.source.count=64",
    "rollout.max_new_tokens=8",
    "logger=none",
    "report=false",
    "trainer.checkpoint_every=1",
    "trainer.checkpoints_kept=9",
)


def composed(overrides: Sequence[str], program: str = "config") -> dict:
    """The plain config of a command line; `program` is the primary config.

    Reading and merging about thirty files takes longer than most tests. It is done once per set of chosen options.
    Values are then set as Hydra sets them (tests/test_configs.py compares).
    """
    return with_references(completed(without_defaults(program, overrides), root_of(program)))


def unresolved(program: str, overrides: Sequence[str]) -> DictConfig:
    """The config with unresolved interpolations; replaces Hydra's `compose`."""
    return OmegaConf.create(completed(without_defaults(program, overrides), root_of(program)))


def without_defaults(program: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The config of the chosen options with the values of the overrides, without defaults."""
    words = [_parsed(word) for word in forced(overrides)]
    chosen = tuple(str(word.input_line) for word in words if _is_option(word))
    config = deepcopy(_with_options(program, chosen))
    ConfigLoaderImpl._apply_overrides_to_config([word for word in words if not _is_option(word)], config)
    plain: Any = OmegaConf.to_container(config)
    return plain


def forced(overrides: Sequence[str]) -> list[str]:
    """Overrides as the command line passes them to Hydra: `++key=value`, because defaults are not in the YAML."""
    free = [word.startswith(("+", "~")) or _is_option(_parsed(word)) for word in overrides]
    return [word if is_free else f"++{word}" for word, is_free in zip(overrides, free, strict=True)]


@cache
def _parsed(word: str) -> Override:
    return OverridesParser.create().parse_override(word)


def _is_option(word: Override) -> bool:
    """Whether an override chooses an option of a group (method=ppo) or adds a folder of options (hydra.searchpath)."""
    return (CONF / word.key_or_group).is_dir() or word.key_or_group == "hydra.searchpath"


@cache
def _with_options(program: str, chosen: tuple[str, ...]) -> DictConfig:
    if GlobalHydra.instance().is_initialized():
        return compose(program, list(chosen))
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose(program, list(chosen))


def train_config(overrides: Sequence[str]) -> TrainConfig:
    """The typed config of a command line."""
    return parse(composed(overrides), TrainConfig)


def with_teacher(overrides: Sequence[str]) -> list[str]:
    """The overrides, with a teacher for method=distill if they name none."""
    named = any(word.startswith("reference=") for word in overrides)
    return [*overrides, f"reference={teacher()}"] if "method=distill" in overrides and not named else [*overrides]


def shallow(method: str) -> tuple[str, ...]:
    """Overrides for a run of the method with the bundled model's first layer, which takes half the time.

    It solves no sums, so methods with their reward are rewarded for the mood of a story.
    """
    reward = ("data=world_stories", "reward=world_mood") if method in ("grpo", "rloo", "reinforce") else ()
    return (f"method={method}", "model=local", f"model.path={one_layer()}", "model.name=one-layer", *reward)


@cache
def one_layer() -> str:
    """The directory of the bundled model with its first layer only."""
    if ONE_LAYER not in os.environ:
        os.environ[ONE_LAYER] = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, os.environ[ONE_LAYER], ignore_errors=True)
        model, tokenizer = pt.load_model("nano")
        model.transformer.h = model.transformer.h[:1]
        model.config.n_layer = 1
        for part in (model, tokenizer):
            part.save_pretrained(os.environ[ONE_LAYER])
    return os.environ[ONE_LAYER]


@cache
def teacher() -> str:
    """The folder of a policy that answers better than the bundled model, trained once per process and its children."""
    if TEACHER not in os.environ:
        output = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, output, ignore_errors=True)
        words = ("method.updates=20", "method.batch_size=16", "data.source.count=320", "evaluation.completions=0")
        os.environ[TEACHER] = str(small_run(Path(output), "method=sft", *words, "trainer.checkpoint_every=100").path)
    return os.environ[TEACHER]


def small_run(output: Path, *overrides: str) -> RunFolder:
    """Executes one small run and returns its folder."""
    overrides = tuple(with_teacher(overrides))
    before = set(output.glob("*/*/*"))
    execute(TRAIN, composed([*SMALL, *overrides, f"paths.output={output}"]), overrides=list(overrides), group=None)
    (path,) = set(output.glob("*/*/*")) - before
    return RunFolder(path)


@contextmanager
def added_callback(callback: Callback) -> Iterator[None]:
    """Adds a callback to all runs."""
    original = run_module.callbacks
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run_module, "callbacks", lambda *args: [*original(*args), callback])
        yield


def resumed(folder: RunFolder, *overrides: str) -> RunFolder:
    """Resumes a run and returns its folder."""
    config = composed([f"resume={folder.path}", *(f"++{override}" for override in overrides)])
    execute(TRAIN, config, overrides=list(overrides), group=None)
    return folder


def records(folder: RunFolder) -> list[dict]:
    """The records of metrics.jsonl without times and performance."""
    return [
        {key: value for key, value in record.items() if key != "time" and not key.startswith("perf/")}
        for record in folder.metrics.read()
    ]


def final_state(folder: RunFolder) -> dict:
    """The content of the newest checkpoint."""
    return FileCheckpointIO().load_checkpoint(sorted(folder.checkpoints.glob("*.ckpt"))[-1], weights_only=True)


def same(one, other) -> bool:
    """Bit equality of nested containers of tensors and numbers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
