"""A synthetic sweep folder: settings of one key, seeds, and the results of each job."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

KL, GOLD = "eval/kl/exact", "gold/total"


def make_sweep(
    path: Path,
    key: str = "method.kl_coef",
    values: Sequence[Any] = (0.0, 0.5),
    seeds: Sequence[int] = (0, 1),
    measured: Callable[[int, int], tuple[float, float]] = lambda cell, seed: (
        0.5 - 0.1 * cell + 0.02 * seed,
        1.0 - cell,
    ),
    **keys: Any,
) -> Path:
    """`measured` gives gold and KL at the end of a job from the number of its setting and its seed."""
    node = {"name": "kl", "question": "What does it cost?", "words": ["sweep=kl"], "metric": GOLD, "direction": "max"}
    (path / "jobs").mkdir(parents=True)
    (path / "sweep.yaml").write_text(yaml.safe_dump({**node, "plot": {"x": KL, "y": GOLD}, **keys}))
    (path / "status.json").write_text(json.dumps({"status": "done"}))
    jobs = []
    for number, (cell, seed) in enumerate((cell, seed) for cell in range(len(values)) for seed in seeds):
        label = f"{key.rpartition('.')[2]}={values[cell]} seed={seed}"
        folder = f"jobs/{number:02}-abcd"
        jobs.append({"number": number, "folder": folder, "label": label, "seed": seed, "settings": {key: values[cell]}})
        _job(path / folder, *measured(cell, seed))
    (path / "jobs.json").write_text(json.dumps(jobs))
    return path


def _job(folder: Path, gold: float, kl: float) -> None:
    folder.mkdir()
    (folder / "status.json").write_text(json.dumps({"status": "done", "seconds": 2.0}))
    changes = {GOLD: [0.1, gold], KL: [0.0, kl]}
    result = {"metric": GOLD, "direction": "max", "objective": gold, "changes": changes}
    (folder / "result.json").write_text(json.dumps(result))
    records = [{"update": update, GOLD: 0.1 + (gold - 0.1) * update / 4, KL: kl * update / 4} for update in (0, 2, 4)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    sample = {"row": 0, "prompt": "Tell me", "completion": f"gold {gold:.2f}", "gold": {"total": gold}}
    (folder / "samples.jsonl").write_text(json.dumps({"update": 4, **sample}) + "\n")
    (folder / "report.html").write_text("")
