"""Weights in llama.cpp's GGUF format, from a Python package that ships them, as an ordinary Hugging Face directory.

They are dequantised once and kept in the cache; what the quantisation lost stays lost.
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
    """The GGUF file an installed package ships; None when it is not installed. The package is not imported."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in found if path.is_file()), None)


def as_hf_directory(file: Path) -> Path:
    """The model of `file`, converted the first time it is asked for."""
    return disk_cached(f"{file.stem}-{fingerprint_file(file)}", lambda directory: convert(file, directory))


def convert(file: Path, directory: Path) -> None:
    """Writes weights in float32, config, tokenizer and chat template."""
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
