"""How the CPU time of an update grows: with prompt length and group size, row length, and vocabulary.

    python benchmarks/curves.py [groups] [lengths] [vocabularies]

Milliseconds of CPU time of the log-probabilities and gradients of one micro-batch under random weights, one thread,
minimum of three. Layers have SmolLM2-135M's shape: two, with 1,024 words, for groups and row lengths, one for
vocabularies. A group is one prompt with G completions of 64 tokens; a vocabulary is measured with eight such rows.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from postrain.models.scoring import score
from postrain.types import Rows

COMPLETION = 64
PROMPTS = (32, 128, 512, 2048)
GROUPS = (1, 2, 4, 8, 16, 32, 64)
LENGTHS = (64, 256, 1024, 4096)
VOCABULARIES = (1_024, 32_768, 49_152, 151_936, 262_144)


def main() -> None:
    """Print the chosen tables."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    chosen = sys.argv[1:] or ["groups", "lengths", "vocabularies"]
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


if __name__ == "__main__":
    main()
