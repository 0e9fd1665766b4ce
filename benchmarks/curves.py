"""How CPU time grows: of an update with prompt length and group size, row length, and vocabulary; and of the
preparation of data with its rows.

    python benchmarks/curves.py [groups] [lengths] [vocabularies] [rows]

Milliseconds of CPU time of the log-probabilities and gradients of one micro-batch under random weights, one thread,
minimum of three. Layers have SmolLM2-135M's shape: two, with 1,024 words, for groups and row lengths, one for
vocabularies. A group is one prompt with G completions of 64 tokens; a vocabulary is measured with eight such rows.

Rows are cut from the text of Python's `help` topics: a prompt of 12 to 48 words and answers of 12 to 96. Preparation is
everything between a file and the first batch: reading, splitting, template, tokens of SmolLM2, audit. Median of three
processes per number of rows, each with an empty cache, where the second preparation finds the tokens of the first.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from pydoc_data.topics import topics
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from postrain.config.tree import instantiate
from postrain.data.module import DataModule
from postrain.data.schedule import DataSpec
from postrain.models.loading import load_tokenizer
from postrain.models.scoring import score
from postrain.types import Rows

COMPLETION = 64
PROMPTS = (32, 128, 512, 2048)
GROUPS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (64, 256, 1024, 4096)
VOCABULARIES = (1_024, 32_768, 49_152, 151_936, 262_144)
ROWS = (1_000, 10_000, 100_000)
LAYOUTS = {"Demonstration": ("completion",), "Preference": ("chosen", "rejected")}
"""Columns of the answers of each record kind."""
MODEL = Path(__file__).resolve().parents[1] / "conf" / "model" / "smollm2.yaml"


def main() -> None:
    """Print the chosen tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    chosen = sys.argv[1:] or ["groups", "lengths", "vocabularies", "rows"]
    if "groups" in chosen:
        model = random_model(1_024)
        print(
            "| prompt | " + " | ".join(f"G = {group}" for group in GROUPS) + " |\n" + "|---" * (len(GROUPS) + 1) + "|"
        )
        for prompt in PROMPTS:
            cells = [f"{milliseconds(model, group_rows(prompt, group)):.0f}" for group in GROUPS]
            print(f"| {prompt} | {' | '.join(cells)} |", flush=True)
    if "lengths" in chosen:
        model = random_model(1_024)
        print("\n| row length | CPU-µs per token |\n|---|---|")
        for length in LENGTHS:
            rows = group_rows(0, max(1, 1024 // length), length)
            print(f"| {length} | {1e3 * milliseconds(model, rows) / sum(map(len, rows.ids)):.0f} |", flush=True)
    if "vocabularies" in chosen:
        print("\n| vocabulary | CPU-ms |\n|---|---|")
        for words in VOCABULARIES:
            model = random_model(words, layers=1)
            print(f"| {words:,} | {milliseconds(model, group_rows(0, 8)):.0f} |", flush=True)
    if "rows" in chosen:
        print("\n| record kind | rows | MB | CPU-s, first time | cached |\n|---|---|---|---|---|")
        for kind in LAYOUTS:
            for count in ROWS:
                with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
                    found = pool.starmap(prepare_twice, [(kind, count)] * 3, chunksize=1)
                size, first, second = map(median, zip(*found, strict=True))
                print(f"| {kind} | {count:,} | {size:.1f} | {first:.2f} | {second:.2f} |", flush=True)


def random_model(words: int, *, layers: int = 2) -> LlamaForCausalLM:
    """A model of SmolLM2-135M's shape with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=words, hidden_size=576, intermediate_size=1536, tie_word_embeddings=True)
    config.num_hidden_layers, config.max_position_embeddings = layers, 8192
    config.num_attention_heads, config.num_key_value_heads, config.head_dim = 9, 3, 64
    return LlamaForCausalLM(config)


def group_rows(prompt: int, group: int, completion: int = COMPLETION) -> Rows:
    """One random prompt with `group` random completions; only the completions are supervised."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(5, 1_000, (prompt,), generator=generator)
    ids = [torch.cat([first, torch.randint(5, 1_000, (completion,), generator=generator)]) for _ in range(group)]
    # The first token of a row without a prompt has nothing that predicts it.
    supervised = torch.arange(prompt + completion) >= max(prompt, 1)
    return Rows(tuple(ids), (supervised,) * group, (0,) * group)


def milliseconds(model: LlamaForCausalLM, rows: Rows, repeats: int = 3) -> float:
    """CPU milliseconds of a forward and backward pass."""
    times = []
    for _ in range(repeats + 1):
        model.zero_grad()
        start = time.process_time()
        score(model, rows).logps_BT.sum().backward()
        times.append(1e3 * (time.process_time() - start))
    return min(times[1:])


def prepare_twice(kind: str, count: int) -> tuple[float, float, float]:
    """Megabytes of a file, and CPU seconds of its first and second preparation."""
    resolved = instantiate(OmegaConf.to_container(OmegaConf.load(MODEL))).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["POSTRAIN_CACHE"] = scratch

        def prepare(path: Path) -> float:
            tokenizer, start = load_tokenizer(resolved), time.process_time()
            spec = DataSpec(kind, context=2048, completion_tokens=0, batch_size=16, updates=100, seed=0)
            with redirect_stdout(sys.stderr):
                DataModule(path).prepare(tokenizer=tokenizer, **asdict(spec))
            return time.process_time() - start

        # The first preparation imports modules.
        few, path = Path(scratch, "few.jsonl"), Path(scratch, "rows.jsonl")
        for file, rows in ((few, 100), (path, count)):
            file.write_text("".join(json.dumps(row) + "\n" for row in random_rows(kind, rows)), encoding="utf-8")
        prepare(few)
        return path.stat().st_size / 1e6, prepare(path), prepare(path)


def random_rows(kind: str, count: int) -> Iterator[dict[str, str]]:
    """Prompts with answers."""
    words, source = " ".join(topics.values()).split(), random.Random(0)

    def cut(longest: int) -> str:
        length, start = source.randint(12, longest), source.randrange(len(words) - longest)
        return " ".join(words[start : start + length])

    for _ in range(count):
        yield {"prompt": cut(48), **{column: cut(96) for column in LAYOUTS[kind]}}


if __name__ == "__main__":
    main()
