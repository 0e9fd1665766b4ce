"""Measures the bundled base model on held-out items of the world: python benchmarks/nano_card.py [DIR].

Prints the numbers of the model card: shares with Wilson's 95 % interval, means with 1.96 standard errors. Uses
transformers only, with one thread. Measures continuations of running text. Leaves out chat, for which the base model
is not trained.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from postrain.evaluation.estimate import wilson
from postrain.generation.stats import format_interval
from postrain.world import rows, score
from postrain.world.facts import all_facts
from postrain.world.gold import mood
from postrain.world.rows import Task

ITEMS = 400
SEED = 2024
BATCH = 100
TASKS: tuple[Task, ...] = ("stories", "sums", "facts")

Model = Any  # a causal LM: transformers types calling and generating too loosely to check


def main(folder: str) -> None:
    """Print one line per measurement."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    for line in (*perplexities(model, tokenizer), *sums(model, tokenizer), *stories(model, tokenizer)):
        print(line)
    for line in facts(model, tokenizer):
        print(line)


def perplexities(model: Model, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Perplexity per token, including the end token. Each document is one sequence."""
    for task in TASKS:
        total = count = 0.0
        for row in rows("text", task=task, count=ITEMS, seed=SEED, split="eval"):
            ids = torch.tensor([[*tokenizer(row["text"])["input_ids"], tokenizer.eos_token_id]])
            with torch.no_grad():
                logps = model(ids).logits[0, :-1].log_softmax(-1)
            total -= float(logps.gather(1, ids[0, 1:, None]).sum())
            count += ids.shape[1] - 1
        yield f"perplexity of held-out {task}: {math.exp(total / count):.3f} ({ITEMS} documents)"


def sums(model: Model, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Accuracy on held-out sums, sampled and greedy, by number of steps."""
    found = rows("prompts", task="sums", count=ITEMS, seed=SEED, split="eval")
    for temperature in (1.0, 0.0):
        completions = sample(model, tokenizer, [row["prompt"] for row in found], temperature)
        results = [
            (row["gold"]["steps"]["count"], "=" in text, score(row["prompt"], text, row["gold"])["correct"] == 1.0)
            for row, text in zip(found, completions, strict=True)
        ]
        yield f"sums at temperature {temperature}: {share([right for *_, right in results])}"
        for steps in (2, 3, 4):
            yield f"  of {steps + 1} numbers: {share([right for count, _, right in results if count == steps])}"
        for name, with_steps in (("with steps", True), ("answer only", False)):
            yield f"  {name}: {share([right for _, has_steps, right in results if has_steps == with_steps])}"


def stories(model: Model, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Mood and gold score of continued stories."""
    found = rows("prompts", task="stories", count=ITEMS, seed=SEED, split="eval")
    completions = sample(model, tokenizer, [row["prompt"] for row in found], 1.0)
    moods = [mood(text) for text in completions]
    yield f"stories, mean mood: {mean(moods)}"
    yield f"  good (> 0.5): {share([m > 0.5 for m in moods])}, bad (< 0.5): {share([m < 0.5 for m in moods])}"
    parts = [score(row["prompt"], text, row["gold"]) for row, text in zip(found, completions, strict=True)]
    for part in ("format", "non_repetition", "fluency", "total"):
        yield f"  gold {part}: {mean([found[part] for found in parts])}"
    for row, text in list(zip(found, completions, strict=True))[:4]:
        yield f"  {row['prompt']} |{text}"


def facts(model: Model, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Greedy accuracy on facts whose statement ends with the value; the prompt is the statement up to the value."""
    cut = [(fact.plain("@").split(" @")[0], fact.value) for fact in all_facts() if fact.plain("@").endswith(" @.")]
    completions = sample(model, tokenizer, [prompt for prompt, _ in cut], 0.0)
    right = [text.strip().startswith(value + ".") for text, (_, value) in zip(completions, cut, strict=True)]
    yield f"facts, greedy: {share(right)}"


def sample(model: Model, tokenizer: PreTrainedTokenizerBase, prompts: list[str], temperature: float) -> list[str]:
    """One completion per prompt, without the end token."""
    completions = []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer(prompts[start : start + BATCH], return_tensors="pt", padding=True)
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        ids = model.generate(**batch, **sampling, max_new_tokens=90)[:, batch["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return completions


def share(hits: list[bool]) -> str:
    """Hits of n with Wilson's 95 % interval."""
    return f"{format_interval(wilson(sum(hits), len(hits)))}, n = {len(hits)}" if hits else "none"


def mean(values: list[float]) -> str:
    """The mean with 1.96 standard errors."""
    return f"{statistics.mean(values):.3f} ± {1.96 * statistics.stdev(values) / math.sqrt(len(values)):.3f}"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(Path(__file__).parents[1] / "postrain" / "assets" / "nano"))
