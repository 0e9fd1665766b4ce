"""CPU capabilities, detected by running an operator, not by the CPU's name, and the usable cores and memory."""

from __future__ import annotations

import functools
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

CGROUP = Path("/sys/fs/cgroup")
ONEDNN: Any = torch.ops.mkldnn
# Not from torch.ops, whose warnings no filter of Python catches.
_TORCH: Any = torch
ROWS = 8
"""The number of input rows for which oneDNN chooses the weight layout; the products are equal for other numbers."""


@functools.cache
def supports_packed_weights(dtype: torch.dtype) -> bool:
    """Whether oneDNN keeps weights of this type in its own layout on this processor, and multiplies them correctly.

    bfloat16 needs AVX-512 (bw, vl, dq) or AVX-NE-CONVERT, float32 any x86 processor; some builds of PyTorch lack these
    operators.
    """
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 16, generator=generator).to(dtype) for rows in (ROWS, 16))
    try:
        product = ONEDNN._linear_pointwise(x, ONEDNN._reorder_linear_weight(weight, ROWS), None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    with torch.autocast("cpu", enabled=False):
        return torch.allclose(product.float(), F.linear(x.float(), weight.float()), rtol=0.02, atol=0.05)


def pack_int8(weight: Tensor, bias: Tensor | None) -> Any:
    """A weight [out, in] rounded to int8 with a scale per output, in the layout of `int8_linear`."""
    scales = weight.abs().amax(1).clamp(min=1e-12) / 127
    zeros = torch.zeros(len(weight), dtype=torch.long)
    # `quantize_per_channel` computes the same, five times as slow.
    rounded = (weight * scales.reciprocal()[:, None]).round_().to(torch.int8)
    with warnings.catch_warnings():
        # PyTorch deprecates quantised tensors, not the operators.
        warnings.simplefilter("ignore")
        quantized = _TORCH._make_per_channel_quantized_tensor(rounded, scales.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(quantized, bias)


def int8_linear(x: Tensor, packed: Any) -> Tensor:
    """x · Wᵀ + b in float32, [B, out]; x is rounded to 8 bits, 7 where 8 would overflow (no VNNI instructions)."""
    return torch.ops.quantized.linear_dynamic(x, packed, not torch.cpu._is_vnni_supported())


@functools.cache
def supports_int8() -> bool:
    """Whether this processor and build of PyTorch multiply int8 matrices correctly."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(rows, 64, generator=generator) for rows in (ROWS, 16))
    try:
        product, exact = int8_linear(x, pack_int8(weight, None)), F.linear(x, weight)
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return float((product - exact).norm() / exact.norm()) < 0.05


@functools.cache
def warn_if_slow(key: str, dtype: torch.dtype) -> None:
    """Warns once per config key if bfloat16 is slower than float32 on this processor."""
    if dtype is torch.bfloat16 and not supports_packed_weights(dtype):
        print(
            f"warning: {key}: bf16 is slow on this processor (no AVX-512 and no AVX-NE-CONVERT); fp32 is faster here",
            file=sys.stderr,
        )


@functools.cache
def bf16_speedup() -> float:
    """How many times as fast as float32 this processor multiplies bf16 matrices, measured in about 50 ms."""
    operands = [(torch.ones(256, 768, dtype=t), torch.ones(768, 768, dtype=t)) for t in (torch.float32, torch.bfloat16)]
    fastest = [float("inf")] * 2
    # The fastest of many short products: other processes interrupt some of them.
    for _ in range(20):
        for index, (x, weight) in enumerate(operands):
            start = time.perf_counter()
            F.linear(x, weight)
            fastest[index] = min(fastest[index], time.perf_counter() - start)
    return fastest[0] / fastest[1]


def usable_cores() -> int:
    """The number of cores that this process may use, which a container or Slurm may limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(count: int | None = None) -> Iterator[None]:
    """`count` threads inside the block, if given; afterwards as many as before, also if the block changes it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def usable_memory() -> int:
    """Bytes of RAM of this machine, at most the limit of the control group."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(installed, int((CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):
        return installed
