"""Two pipelines, and functions that their stages call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

TWO = """\
# SFT, then a generation
stages:
  learn: [method=sft, data.source.count=32]
  make: {generate: [model=run, "model.path=${stages.learn.model}", selection=all, prompt_count=6, samples=2]}
"""
LAB = """\
# A reward model, two policies trained on it, best-of-n, an evaluation and a plot
stages:
  proxy: [method=reward, data.source.noise=0.2]
  policy:
    train: [method=ppo, reward=learned, "reward.path=${stages.proxy.folder}"]
    each:
      free: [method.kl_coef=0.01]
      held: [method.kl_coef=0.5]
  best:
    generate: [data=world_stories, reward=learned, "reward.path=${stages.proxy.folder}", selection=best, samples=2]
  test:
    evaluate:
      - model=run
      - model.path=${stages.policy.held.folder}
      - compare=[${stages.policy.free.model},${stages.policy.free.start}]
      - evaluation=lengths
      - evaluation.tasks.lengths.prompts=2
  picture:
    call: tests.jobs.pipelines.draw
    arguments: {runs: "${stages.policy}", best: "${stages.best.data}", title: KL}
"""


def draw(*, folder: str, runs: Mapping[str, Mapping[str, str]], best: str, title: str) -> None:
    """Writes a summary of its arguments to picture.json."""
    found = {name: Path(run["model"], "config.json").is_file() for name, run in runs.items()}
    Path(folder, "picture.json").write_text(json.dumps({"title": title, "best": Path(best).is_file(), **found}))


def measure(*, folder: str, values: list[float], after: str = "") -> None:
    """Writes a result with a score: the value of the folder's seed, the first one without a seed."""
    seed = int(folder.rpartition("seed_")[2]) if "seed_" in folder else 0
    Path(folder, "result.json").write_text(json.dumps({"values": {"score": values[seed]}, "after": after}))
