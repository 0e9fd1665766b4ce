"""The checks of gpu_check.py on what is computed in another way on a GPU: decoding under autocast and without waiting
for the device, attention of shared prompts in one kernel, TF32, and the default micro-batch."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from gpu_correctness import BF16_LOGPS, Result, compared, scored
from gpu_runs import TrainingRun, now
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import postrain as pt
from postrain.models import tree_attention
from postrain.rollout.decode import backend, loop

TF32_LOGPS = 0.02
"""Bound of TF32 against float32: root mean square in nats."""
MOST_MEMORY = 0.9
"""Share of the device's memory that the default micro-batch may take."""


def sampled_in_bf16(name: str, model: nn.Module, tokenizer: Any, rows: Sequence[Any], device: torch.device) -> Result:
    """Log-probabilities of the fast decoder under autocast against those of a forward pass; its time against that of
    the model's forward pass."""
    model, prompts = copy.deepcopy(model).to(device), [prompt for prompt, _ in rows]

    def sample(kind: type[backend.SlotBackend]) -> tuple[Any, float]:
        with patch.object(backend, "is_supported", lambda *_, **__: kind is backend.FastBackend):
            pt.generate(model, prompts, tokenizer=tokenizer, max_new_tokens=2)
            started = now(device)
            found = pt.generate(model, prompts, tokenizer=tokenizer, max_new_tokens=32, num_generations=4)
            return found, now(device) - started

    with torch.autocast(device.type, torch.bfloat16):
        (found, fast), (_, slow) = sample(backend.FastBackend), sample(backend.SlotBackend)
        with torch.no_grad():
            logps = pt.score(model, found)
    sampled = torch.tensor([logp for each in found for logp in each.logps])
    error = float((logps[logps.mask].cpu() - sampled).square().mean().sqrt())
    text = f"log-probabilities differ by {error:.3f} nats RMS (bound {BF16_LOGPS}), {slow / fast:.1f} times as fast as "
    status = "passed" if error <= BF16_LOGPS else "failed"
    return Result(name, status, f"{text}the model's forward pass", {"logps": error, "speedup": slow / fast})


class HostReads(TorchDispatchMode):
    """Counts operations that make the host wait for a device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def waits(device: torch.device, function: Callable[[], object]) -> int:
    """How often the host waits for the device while the function runs; on a CPU, how often it would."""
    if device.type != "cuda":
        with HostReads() as mode:
            function()
        return mode.count
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(each.message) for each in found)


def decoded_in_blocks(name: str, model: nn.Module, tokenizer: Any, rows: Sequence[Any], device: torch.device) -> Result:
    """The host waits once in eight steps, and completions are those of a check after every step."""
    model, prompts = copy.deepcopy(model).to(device), [prompt for prompt, _ in rows]

    def sample(tokens: int, steps: int) -> Any:
        with patch.dict(loop.STEPS_PER_CHECK, {device.type: steps}):
            return pt.generate(model, prompts, tokenizer=tokenizer, max_new_tokens=tokens)

    expected, found = sample(24, 1), sample(24, 8)
    same = all(one.token_ids == other.token_ids for one, other in zip(found, expected, strict=True))
    counts = [waits(device, lambda tokens=tokens: sample(tokens, 8)) for tokens in (24, 40)]
    # Two more blocks: a check each, and a refill if rows have ended.
    more, bound = counts[1] - counts[0], 2 * 6
    text = f"16 more tokens make the host wait {more} more times (bound {bound}), same completions: {same}"
    return Result(name, "passed" if same and more <= bound else "failed", text, {"waits": more})


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, scale: float | None, enable_gqa: bool
) -> Tensor:
    """The definition of flex_attention, for a CPU, where its kernel has no gradient."""
    at_N = torch.arange(query.shape[2], device=query.device)
    mask_NN = block_mask.mask_mod(at_N, at_N, at_N[:, None], at_N)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_NN, scale=scale, enable_gqa=enable_gqa)


@contextmanager
def tree_kernel(device: torch.device) -> Iterator[dict[Any, bool]]:
    """Uses the kernel for packed rows of any size; gives the kinds of tensors that it was tried with."""
    tried: dict[Any, bool] = {}
    with (
        patch.object(tree_attention, "DEVICES", {device.type}),
        patch.object(tree_attention, "FEWEST_TOKENS", 1),
        patch.object(tree_attention, "known", tried),
        patch.object(
            tree_attention,
            "compiled",
            tree_attention.compiled if device.type == "cuda" else lambda: dense_attention,
        ),
    ):
        yield tried


def shared_prompts_in_one_kernel(
    name: str, model: nn.Module, rows: Sequence[Any], device: torch.device, tokens: int
) -> Result:
    """Attention of shared prompts with flex_attention against SDPA; seconds of both for 8 prompts of `tokens` with 8
    completions of half of it, under autocast."""
    model, vocabulary = copy.deepcopy(model).to(device), 500
    source = torch.Generator().manual_seed(0)

    def draw(count: int) -> list[int]:
        return torch.randint(2, vocabulary, (count,), generator=source).tolist()

    many = [(prompt, draw(tokens // 2)) for prompt in [draw(tokens) for _ in range(8)] for _ in range(8)]

    def seconds() -> float:
        found = []
        for _ in range(3):
            started = now(device)
            with torch.autocast(device.type, torch.bfloat16):
                pt.score(model, many).sum().backward()
            found.append(now(device) - started)
        return min(found)

    with patch.object(tree_attention, "DEVICES", set()):
        expected, before = scored(model, rows), seconds()
    with tree_kernel(device) as tried:
        result = compared(name, scored(model, rows), expected)
        after = seconds()
    if not tried or not all(tried.values()):
        return replace(result, status="failed", text="the kernel was not used; the line on stderr says why")
    numbers = {**result.numbers, "speedup": before / after}
    return replace(result, text=f"{result.text}, {before / after:.2f} times as fast", numbers=numbers)


def tf32_near_float32(name: str, model: nn.Module, rows: Sequence[Any], device: torch.device) -> Result:
    """trainer.float32_matmul_precision=high against highest."""
    model = copy.deepcopy(model).to(device)
    width = 4096 if device.type == "cuda" else 128
    product = torch.randn(width, width, device=device)
    found, seconds = [], []
    for precision in ("highest", "high"):
        torch.set_float32_matmul_precision(precision)
        try:
            found.append(scored(model, rows)[0])
            times = []
            for _ in range(5):
                started = now(device)
                product @ product  # pyright: ignore[reportUnusedExpression]
                times.append(now(device) - started)
            seconds.append(min(times))
        finally:
            torch.set_float32_matmul_precision("highest")
    error = float((found[1] - found[0]).square().mean().sqrt())
    text = f"log-probabilities differ by {error:.1e} nats RMS (bound {TF32_LOGPS}), "
    text += f"a product is {seconds[0] / seconds[1]:.1f} times as fast"
    return Result(name, "passed" if error <= TF32_LOGPS else "failed", text, {"logps": error})


def default_micro_batch(name: str, run: TrainingRun) -> Result:
    """Trains with the default micro-batch of this device, which has to fit its memory."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = run.default_micro_batch_tokens(Path(folder))
        found = replace(run, size=replace(run.size, micro_batch_tokens=tokens)).measure(Path(folder))
    numbers = {"tokens": float(tokens), "tokens_per_second": found.tokens_per_second}
    text = f"micro-batches of {tokens:,} tokens, {found.tokens_per_second:,.0f} tokens/s"
    if found.peak_bytes is None:
        return Result(name, "passed", text, numbers)
    share = found.peak_bytes / torch.cuda.get_device_properties(run.device).total_memory
    status = "passed" if share <= MOST_MEMORY else "failed"
    text = f"{text}, {share:.0%} of the memory (bound {MOST_MEMORY:.0%})"
    return Result(name, status, text, {**numbers, "share": share})
