"""Synthetic run folders: a PPO run with every kind of file."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from postrain.report import write_report

STORIES = (
    "Mia found a kite in the",
    "Tom went to the lake with",
    "The old dog looked at the",
    "One rainy day, Ana and",
)
ENDS = (" park. It was broken and she was sad.", " park and she laughed. What a happy, happy day!", " door.")


def metrics_of(update: int, total: int, rng: random.Random) -> dict[str, Any]:
    """Plausible metrics: the reward rises and levels off, the KL grows, the critic learns."""
    progress = 1 - math.exp(-3 * update / total)
    found: dict[str, Any] = {
        "reward/total": 0.25 + 0.5 * progress + rng.gauss(0, 0.04),
        "reward/mood": 0.3 + 0.55 * progress + rng.gauss(0, 0.05),
        "reward/length": 0.5 + rng.gauss(0, 0.05),
        "kl/exact": 0.12 * progress + abs(rng.gauss(0, 0.004)),
        "kl/k1": 0.12 * progress + rng.gauss(0, 0.02),
        "kl/k3": 0.12 * progress + rng.gauss(0, 0.01),
        "kl/coef": 0.05,
        "loss": 0.4 * (1 - progress) + rng.gauss(0, 0.03),
        "policy_loss": rng.gauss(0, 0.01),
        "value_loss": 0.4 * (1 - progress) + 0.05,
        "value/explained_variance": progress * 0.8 + rng.gauss(0, 0.05),
        "entropy": 2.1 - 0.6 * progress,
        "clip_fraction": 0.08 + rng.gauss(0, 0.02),
        "ratio/max": 1.5 + rng.random(),
        "ratio/mean": 1 + rng.gauss(0, 0.01),
        "grad_norm": 0.6 + rng.random() * 0.4,
        "learning_rate": 1e-4 * (1 - update / total),
        "completion/length": 28 + 6 * progress + rng.gauss(0, 1),
        "completion/finished": 0.6 + 0.3 * progress,
        "perf/seconds": 0.4 + rng.random() * 0.1,
        "perf/tokens_per_second": 4000 + 400 * rng.random(),
        "perf/peak_memory_gib": 0.9 + 0.1 * progress,
    }
    if update % max(1, total // 5) == 0:
        found |= {
            "eval/reward/total": 0.24 + 0.48 * progress,
            "eval/kl/exact": 0.11 * progress,
            "gold/total": 0.3 + 0.4 * progress,
            "gold/mood": 0.25 + 0.5 * progress,
            "gold/non_repetition": 0.98 - 0.1 * progress,
            "eval/completion/length": 28 + 5 * progress,
        }
    return found


def sample_of(update: int, row: int, progress: float, rng: random.Random) -> dict[str, Any]:
    mood = min(1.0, max(0.0, 0.2 + 0.6 * progress + rng.gauss(0, 0.15)))
    return {
        "update": update,
        "row": row,
        "prompt": STORIES[row % 4],
        "completion": ENDS[1 if mood > 0.5 else row % 3] * (1 + row % 2),
        "rewards": {"total": 0.9 * mood, "mood": mood},
        "gold": {"total": mood, "mood": mood, "non_repetition": 1 - 0.2 * rng.random()},
    }


def make_run(base: Path, *, updates: int = 60, samples: int = 32, seed: int = 0, few: bool = False) -> Path:
    """A finished run in base/ppo/nano/<time>-<hash>; with `few`, of three curves."""
    rng = random.Random(seed)
    path = base / "ppo" / "nano" / "2026-01-02_03-04-05-0123abcd"
    path.mkdir(parents=True)
    records = [{"update": 0, "time": 1.7e9, "eval/reward/total": 0.24, "gold/total": 0.3, "eval/kl/exact": 0.0}]
    records += [
        {"update": k, "time": 1.7e9 + k / 2, "optimizer_steps": 8 * k} | metrics_of(k, updates, rng)
        for k in range(1, updates + 1)
    ]
    kept = ("update", "time", "reward/total", "loss", "eval/reward/total")
    records = [{name: value for name, value in record.items() if not few or name in kept} for record in records]
    write_lines(path / "metrics.jsonl", records)
    pairs = [(update, row) for update in (0, updates) for row in range(samples)]
    write_lines(path / "samples.jsonl", [sample_of(update, row, update / updates, rng) for update, row in pairs])
    text = "The policy loss is -3.0e-09, yet the gradient norm is 0.4. This is expected."
    write_lines(
        path / "diagnostics.jsonl",
        [{"update": 1, "rule": "loss", "title": "The loss is near 0, as expected", "text": text, "stops": False}],
    )
    status = {"status": "done", "reason": "", "started": 1.7e9, "written": 1.7e9 + 31, "seconds": 31.5}
    (path / "status.json").write_text(json.dumps(status))
    manifest = {
        "reproduce": "python train.py method=ppo model=gpt2 trainer=cpu",
        "stand_in_for": "gpt2",
        "git": {"commit": "0123456789abcdef", "dirty": True},
        "seeds": {"seed": 0},
        "data": {"source": "the world: stories", "train": {"rows": 512, "dropped": 0}, "eval": {"rows": 64}},
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "hardware": {"cpu": "a made-up CPU", "cores": 2, "threads": 2, "memory_gib": 23.4, "gpus": []},
    }
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "config.yaml").write_text("method:\n  updates: 60\n  kl_coef: 0.05\n")
    return path


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with its report, for tests that only read it."""
    path = make_run(tmp_path_factory.mktemp("runs"))
    write_report(path)
    return path


@pytest.fixture
def run_maker() -> Callable[..., Path]:
    return make_run
