"""The types of a GGUF file's weights. f16 and q8_0 are computed here; q4_k_m by llama.cpp, which chooses the type of
each matrix.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from postrain.errors import ConfigError

TYPES = ("f16", "q8_0", "q4_k_m")
FILE_TYPES = {"f16": 1, "q8_0": 7, "q4_k_m": 15}
"""The numbers of llama.cpp's file types."""
FLOAT16_MAX = 65504.0
BLOCK = 32


def check_type(kind: str) -> None:
    """Raises ConfigError for a type that does not exist or cannot be written here."""
    if kind not in TYPES:
        raise ConfigError(f"--gguf {kind}: no such type; expected one of {', '.join(TYPES)}")
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"--gguf {kind} needs the package gguf: pip install gguf")
    if kind == "q4_k_m" and not (shutil.which("llama-quantize") or importlib.util.find_spec("llama_cpp")):
        raise ConfigError(
            "--gguf q4_k_m is quantized by llama.cpp: install it (llama-quantize on the PATH, or pip install "
            "llama-cpp-python), or write q8_0"
        )


def type_of(name: str, shape: Sequence[int], kind: str) -> Any:
    """The type of a tensor in a file of type `kind`: vectors and positions stay float32."""
    from gguf import GGMLQuantizationType  # noqa: PLC0415 - optional

    if len(shape) < 2 or name.startswith("position_embd"):
        return GGMLQuantizationType.F32
    # As llama.cpp does for rows that are not whole blocks.
    return GGMLQuantizationType.Q8_0 if kind == "q8_0" and shape[-1] % BLOCK == 0 else GGMLQuantizationType.F16


def size_of(shape: Sequence[int], type_: Any) -> int:
    """Bytes of a tensor in the file."""
    from gguf import GGML_QUANT_SIZES  # noqa: PLC0415 - optional

    block, size = GGML_QUANT_SIZES[type_]
    return math.prod(shape) // block * size


def quantized(name: str, values: Tensor, type_: Any) -> Any:
    """A tensor as a numpy array of the given type."""
    from gguf import GGMLQuantizationType, quants  # noqa: PLC0415 - optional

    largest = float(values.abs().max())
    if type_ != GGMLQuantizationType.F32 and not largest <= FLOAT16_MAX:
        raise ConfigError(f"--gguf: {name} has a value of {largest:.3g}, beyond float16; check the trained weights")
    return quants.quantize(values.float().contiguous().numpy(), type_)


def quantize_with_llama_cpp(source: Path, target: Path, kind: str) -> None:
    """Quantizes a file of type f16 by the program llama-quantize, or else by the package llama_cpp."""
    if program := shutil.which("llama-quantize"):
        result = subprocess.run(
            [program, str(source), str(target), kind.upper()], capture_output=True, text=True, check=False
        )
        code, reason = result.returncode, (result.stderr.strip().splitlines() or [""])[-1]
    else:
        import llama_cpp  # noqa: PLC0415  # pyright: ignore[reportMissingImports] - optional

        # A line for each tensor.
        silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(silent, None)
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = FILE_TYPES[kind]
        code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings)
        # The default again: the callback is freed with this function.
        llama_cpp.llama_log_set(llama_cpp.llama_log_callback(), None)
        reason = "llama_model_quantize failed"
    if code or not target.is_file():
        raise ConfigError(f"--gguf {kind}: llama.cpp could not quantize {source.name} ({reason}); write q8_0 instead")
