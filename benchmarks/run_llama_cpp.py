"""Measures llama.cpp: CPU seconds of sampling on one thread. Run by generation.py, in an environment of its own.

Reads the prompts (token ids), the number of completions of each, the new tokens of a completion and the rounds from
standard input as JSON, and writes the CPU seconds of each round. The calls are those of a server with parallel slots:
each prompt is computed once and its cache shared by its completions. Then one `llama_decode` per token computes all
rows, and a sampler with temperature 1 draws a token of each. End tokens do not end a row.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import llama_cpp as llama  # pyright: ignore[reportMissingImports] - in an environment of its own


def main() -> None:
    """Measure one GGUF file; the first round is not counted."""
    request = json.load(sys.stdin)
    prompts, group, new_tokens = request["prompts"], request["completions"], request["new_tokens"]
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(sys.argv[1].encode(), llama.llama_model_default_params())
    settings = llama.llama_context_default_params()
    settings.n_seq_max = rows = len(prompts) * group
    settings.n_ctx = rows * (max(map(len, prompts)) + new_tokens)
    settings.n_batch = settings.n_ubatch = 512
    settings.n_threads = settings.n_threads_batch = 1
    settings.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED  # 5 to 25 % faster
    context = llama.llama_init_from_model(model, settings)
    seconds = []
    for seed in range(request["rounds"] + 1):
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        start = time.process_time()
        sample(context, prompts, group, new_tokens, seed)
        seconds.append(time.process_time() - start)
    print(json.dumps(seconds[1:]))


def sample(context: Any, prompts: list[list[int]], group: int, new_tokens: int, seed: int) -> list[list[int]]:
    """Completions of `new_tokens` tokens, `group` per prompt."""
    memory, rows = llama.llama_get_memory(context), len(prompts) * group
    samplers = [sampler(1000 * seed + row) for row in range(rows)]
    batch = llama.llama_batch_init(512, 0, 1)
    found: list[list[int]] = [[] for _ in range(rows)]
    for index, prompt in enumerate(prompts):
        first = index * group
        decode(context, batch, [(token, at, first) for at, token in enumerate(prompt)])
        for row in range(first, first + group):
            if row > first:
                llama.llama_memory_seq_cp(memory, first, row, -1, -1)
            found[row].append(llama.llama_sampler_sample(samplers[row], context, -1))
    for step in range(new_tokens - 1):
        tokens = [(found[row][-1], len(prompts[row // group]) + step, row) for row in range(rows)]
        decode(context, batch, tokens, every=True)
        for row in range(rows):
            found[row].append(llama.llama_sampler_sample(samplers[row], context, row))
    llama.llama_batch_free(batch)
    for one in samplers:
        llama.llama_sampler_free(one)
    return found


def sampler(seed: int) -> Any:
    """Draws from the whole distribution at temperature 1."""
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    llama.llama_sampler_chain_add(chain, llama.llama_sampler_init_dist(seed))
    return chain


def decode(context: Any, batch: Any, tokens: list[tuple[int, int, int]], *, every: bool = False) -> None:
    """Runs tokens with their positions and sequences; logits of the last one, or of every one."""
    batch.n_tokens = len(tokens)
    for index, (token, position, sequence) in enumerate(tokens):
        batch.token[index], batch.pos[index] = token, position
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
        batch.logits[index] = every or index == len(tokens) - 1
    if llama.llama_decode(context, batch):
        sys.exit("llama_decode failed")


if __name__ == "__main__":
    main()
