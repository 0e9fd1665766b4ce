"""CPU seconds of sampling: postrain's local engine and transformers' `generate`, same prompts, one thread, float32.

    OMP_NUM_THREADS=1 python benchmarks/generation.py [--models nano,smollm2] [--rounds 3] \\
        [--llama-python LLAMA_VENV/bin/python --gguf smollm2-F16.gguf,smollm2-Q8_0.gguf]

Every completion has exactly 48 tokens at temperature 1. Prompts are 16 to 64 random tokens. The engines alternate, so
that other load on the machine affects both; the table shows medians. A second table shows the CPU time of each engine
by type of operation. `--gguf` measures llama.cpp with these files of the same model, in an environment that has
llama-cpp-python, after the other engines.
"""

from __future__ import annotations

import argparse
import json
import subprocess
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
CASES = {"nano": ((16, 8),), "smollm2": ((1, 1), (2, 4), (8, 8))}
"""Prompts, and completions per prompt."""
PARTS = {
    "products with weights": ("mm", "addmm", "_linear_pointwise"),
    "attention": ("_scaled_dot_product", "_softmax", "bmm"),
    "growing the cache": ("cat", "index_put", "_index_put_impl_"),
    "reordering weights": ("_reorder_linear_weight",),
    "drawing": ("exponential_", "cumsum", "searchsorted", "exp_", "argmax", "multinomial", "amax"),
}
"""Purpose of an operator, by the beginning of its name. Other operators are counted as 'the rest'."""


def main() -> None:
    """Measure all models and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="nano,smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--llama-python", default=sys.executable)
    parser.add_argument("--gguf", default="")
    args = parser.parse_args()
    files = args.gguf.split(",") if args.gguf else []
    torch.set_num_threads(1)
    columns = ("model", "prompts × completions", "generate CPU-s", "ours", "speed-up", "ours in bf16", "in int8")
    columns += tuple(f"llama.cpp {Path(file).stem}" for file in files)
    print(f"| {' | '.join(columns)} |\n" + "|---" * len(columns) + "|")
    shares = []
    for name in args.models.split(","):
        model = load(name)
        for prompts, group in CASES[name]:
            rows = [row for row in make_prompts(prompts, model.config.vocab_size) for _ in range(group)]
            engines = [
                transformers_engine(model, rows),
                local_engine(model, rows),
                local_engine(model, rows, dtype="bf16"),
                local_engine(model, rows, dtype="int8"),
            ]
            hf, float32, bf16, int8 = measure(engines, args.rounds)
            cells = f"{prompts} × {group} | {hf:.2f} | {float32:.2f} | {hf / float32:.2f} | {bf16:.2f} | {int8:.2f}"
            others = [llama_cpp(args.llama_python, file, rows[::group], group, args.rounds) for file in files]
            print(f"| {name} | {' | '.join([cells, *(f'{seconds:.2f}' for seconds in others)])} |", flush=True)
            shares += [
                (f"{name} {prompts} × {group} {engine}", operator_shares(sample))
                for engine, sample in zip(("generate", "ours"), engines, strict=False)
            ]
    print(
        "\n| share of CPU time | " + " | ".join([*PARTS, "the rest"]) + " |\n|---" * 1 + "|---" * (len(PARTS) + 1) + "|"
    )
    for engine, values in shares:
        print(f"| {engine} | " + " | ".join(f"{share:.0%}" for share in values) + " |")


def load(name: str) -> Any:
    """A model of conf/model, in eval mode."""
    source = instantiate(OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml")))
    return load_causal(source.resolve(), dtype=torch.float32).eval()


def make_prompts(count: int, vocabulary: int) -> list[Tensor]:
    """Prompts of 16 to 64 random tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(16, 65, (count,), generator=generator).tolist()
    return [torch.randint(5, vocabulary, (length,), generator=generator) for length in lengths]


def transformers_engine(model: Any, rows: list[Tensor]) -> Callable[[], object]:
    """Sampling with transformers' `generate`, padded on the left."""
    ids = pad_sequence([row.flip(0) for row in rows], batch_first=True).flip(1)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).flip(1)
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
    length = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    return lambda: model.generate(input_ids=ids, attention_mask=mask, **sampling, **length)


def local_engine(model: Any, rows: list[Tensor], **changes: Any) -> Callable[[], object]:
    """Sampling with the local engine of conf/rollout/local.yaml, without stop tokens."""
    settings = OmegaConf.to_container(OmegaConf.load(CONF / "rollout" / "local.yaml"))
    assert isinstance(settings, dict)
    engine: LocalEngine = instantiate(settings | {"max_new_tokens": NEW_TOKENS} | changes)
    return lambda: engine.generate(model, rows, seeds=range(len(rows)), stop=Stop(()))


def measure(engines: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median CPU seconds of each engine, after one warm-up round."""
    seconds: list[list[float]] = [[] for _ in engines]
    for _ in range(rounds + 1):
        for sample, durations in zip(engines, seconds, strict=True):
            start = time.process_time()
            sample()
            durations.append(time.process_time() - start)
    return [median(durations[1:]) for durations in seconds]


def llama_cpp(python: str, file: str, prompts: list[Tensor], group: int, rounds: int) -> float:
    """Median CPU seconds of llama.cpp with the weights of a GGUF file, in a separate process."""
    request = {"prompts": [prompt.tolist() for prompt in prompts], "completions": group}
    sent = json.dumps(request | {"new_tokens": NEW_TOKENS, "rounds": rounds})
    command = [python, str(Path(__file__).with_name("run_llama_cpp.py")), file]
    done = subprocess.run(command, input=sent, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{file}: {done.stderr[-2000:]}")
    return median(json.loads(done.stdout))


def operator_shares(sample: Callable[[], object]) -> list[float]:
    """Share of each entry of PARTS, and of the rest, in the operators' self time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        sample()
    events = {event.key.split("::")[-1]: event.self_cpu_time_total for event in profiled.key_averages()}
    total = sum(events.values())
    seconds = [
        sum(
            time
            for name, time in events.items()
            if any(name == key or (len(key) > 8 and name.startswith(key)) for key in names)
        )
        for names in PARTS.values()
    ]
    return [value / total for value in seconds] + [1 - sum(seconds) / total]


if __name__ == "__main__":
    main()
