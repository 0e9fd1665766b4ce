"""Converts weights in llama.cpp's GGUF format, also from an installed Python package, to a Hugging Face directory.

Weights are dequantized once and cached; the quantization error remains.
"""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from postrain.errors import ConfigError
from postrain.models.directory import fingerprint_file
from postrain.models.disk_cache import disk_cached
from postrain.models.quiet import quiet
from postrain.models.vocabulary import ensure_pad


def find_gguf(package: str) -> Path | None:
    """The GGUF file in an installed package, which is not imported; None if it is not installed."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in found if path.is_file()), None)


def as_hf_directory(file: Path) -> Path:
    """The converted model of `file`, from the cache after the first call."""
    return disk_cached(f"{file.stem}-{fingerprint_file(file)}", lambda directory: convert(file, directory))


def convert(file: Path, directory: Path) -> None:
    """Writes float32 weights, config, tokenizer and chat template."""
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError(f"{file.name} needs the package gguf to be read: pip install gguf")
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype="float32",
            trust_remote_code=False,
        )
        ensure_pad(tokenizer)
        tokenizer.save_pretrained(directory)
        model.save_pretrained(directory)
