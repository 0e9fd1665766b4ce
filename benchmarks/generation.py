"""CPU seconds of sampling: our local engine beside transformers' `generate`, the same prompts, one thread, float32.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--models nano,smollm2] [--rounds 3]

Every completion has exactly 48 tokens at temperature 1. The two take turns, so that what else the machine does falls on
both; medians. Below the table: what a step of ours is made of, as shares of its CPU seconds. Prompts are random tokens,
16 to 64 of them: nothing here depends on what they say.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.profiler import ProfilerActivity, profile

from postrain.config.tree import instantiate
from postrain.models.loading import load_causal
from postrain.rollout.local import LocalEngine
from postrain.types import Stop

CONF = Path(__file__).resolve().parents[1] / "conf"
NEW_TOKENS = 48
CASES = {"nano": ((16, 8),), "smollm2": ((2, 4), (8, 8))}
"""Prompts and completions of each."""
PARTS = {
    "products with weights": ("mm", "addmm", "_linear_pointwise"),
    "attention": ("_scaled_dot_product", "_softmax", "bmm"),
    "growing the cache": ("cat", "index_put", "_index_put_impl_"),
    "reordering weights": ("_reorder_linear_weight",),
    "drawing": ("exponential_", "cumsum", "searchsorted", "exp_", "argmax", "multinomial", "amax"),
}
"""Operators by what they are for, by the beginning of their names; everything else is small."""


def main() -> None:
    """Measures and prints a table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nano,smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | prompts × completions | generate CPU-s | ours | times | ours in bf16 |\n|---|---|---|---|---|---|")
    shares = []
    for name in args.models.split(","):
        model = load(name)
        for prompts, group in CASES[name]:
            rows = [row for row in make_prompts(prompts, model.config.vocab_size) for _ in range(group)]
            ways: list[Callable[[], object]] = [peer(model, rows), ours(model, rows), ours(model, rows, dtype="bf16")]
            theirs, mine, rounded = measured(ways, args.rounds)
            cells = f"{prompts} × {group} | {theirs:.2f} | {mine:.2f} | {theirs / mine:.2f} | {rounded:.2f}"
            print(f"| {name} | {cells} |", flush=True)
            shares += [
                (f"{name} {prompts} × {group} {who}", parts(way))
                for who, way in zip(("generate", "ours"), ways, strict=False)
            ]
    print(
        "\n| share of CPU time | " + " | ".join([*PARTS, "the rest"]) + " |\n|---" * 1 + "|---" * (len(PARTS) + 1) + "|"
    )
    for who, found in shares:
        print(f"| {who} | " + " | ".join(f"{share:.0%}" for share in found) + " |")


def load(name: str) -> Any:
    """One of the models of conf/model, in eval mode."""
    source = instantiate(OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml")))
    return load_causal(source.resolve(), dtype=torch.float32).eval()


def make_prompts(count: int, vocabulary: int) -> list[Tensor]:
    """Rows of 16 to 64 random tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 65, (count,), generator=generator).tolist()
    return [torch.randint(5, vocabulary, (length,), generator=generator) for length in lengths]


def peer(model: Any, rows: list[Tensor]) -> Callable[[], object]:
    """Transformers' own sampling, padded on the left."""
    ids = pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).flip(1)
    chance: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    return lambda: model.generate(input_ids=ids, attention_mask=mask, **chance, **length)


def ours(model: Any, rows: list[Tensor], **changes: Any) -> Callable[[], object]:
    """The local engine of conf/rollout/local.yaml; nothing ends a completion early."""
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "rollout" / "local.yaml"))
    assert isinstance(settings, dict)
    engine: LocalEngine = instantiate(settings | {"max_new_tokens": NEW_TOKENS} | changes)
    return lambda: engine.generate(model, rows, seeds=range(len(rows)), stop=Stop(()))


def measured(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each, after a round to warm up."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds + 1):
        for way, found in zip(ways, seconds, strict=True):
            before = time.process_time()
            way()
            found.append(time.process_time() - before)
    return [median(found[1:]) for found in seconds]


def parts(way: Callable[[], object]) -> list[float]:
    """Share of each of PARTS in the operators' own time, and of the rest."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        way()
    events = {event.key.split("::")[-1]: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(events.values())
    found = [
        sum(
            time
            for name, time in events.items()
            if any(name == key or (len(key) > 8 and name.startswith(key)) for key in names)
        )
        for names in PARTS.values()
    ]
    return [value / total for value in found] + [1 - sum(found) / total]


if __name__ == "__main__":
    main()
