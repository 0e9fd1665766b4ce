"""Tiny runs in this process, composed as the command line composes them, for tests that look at a whole run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from postrain import run as run_module
from postrain.folder import RunFolder

CONF = Path(__file__).parent.parent / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))

# Three updates on few rows: enough for every part of a run to be used, small enough for many runs.
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


def composed(overrides: Sequence[str]) -> dict:
    """The plain config of a command line."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = OmegaConf.to_container(compose("config", [*overrides]), resolve=True)
    assert isinstance(config, dict)
    return config


def small_run(output: Path, *overrides: str) -> RunFolder:
    """One small run; its folder."""
    before = set(output.glob("*/*/*"))
    run_module.execute(composed([*SMALL, *overrides, f"paths.output={output}"]), overrides=list(overrides), group=None)
    (made,) = set(output.glob("*/*/*")) - before
    return RunFolder(made)


def resumed(folder: RunFolder, *overrides: str) -> RunFolder:
    """The same run, gone on with."""
    config = composed([f"resume={folder.path}", *(f"++{override}" for override in overrides)])
    run_module.execute(config, overrides=list(overrides), group=None)
    return folder


def records(folder: RunFolder) -> list[dict]:
    """metrics.jsonl without what a clock decides."""
    return [
        {key: value for key, value in record.items() if key != "time" and not key.startswith("perf/")}
        for record in folder.metrics.read()
    ]


def final_state(folder: RunFolder) -> dict:
    """The newest checkpoint."""
    return torch.load(sorted(folder.checkpoints.glob("*.ckpt"))[-1], weights_only=True)


def same(one, other) -> bool:
    """Bit equality of nested containers of tensors and numbers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other
