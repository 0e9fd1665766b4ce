"""Writes a GGUF file and reads its weights again."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GgufConfig

from postrain.errors import ConfigError
from postrain.models.quiet import quiet
from postrain.models.to_gguf.architectures import add_metadata, architecture_of, extra_tensors, rope_of
from postrain.models.to_gguf.quantize import FILE_TYPES, quantize_with_llama_cpp, quantized, size_of, type_of
from postrain.models.to_gguf.tokenizer import add_tokenizer


def write_gguf(model: Any, tokenizer: Any, path: Path, kind: str, *, name: str, end_ids: Sequence[int] = ()) -> None:
    """Writes `model`, with its weights of type `kind`, to `path`. Raises ConfigError for an unsupported model."""
    if kind == "q4_k_m":
        source = path.with_suffix(".f16")
        write_gguf(model, tokenizer, source, "f16", name=name, end_ids=end_ids)
        quantize_with_llama_cpp(source, path, kind)
        source.unlink()
        return
    from gguf import GGUFWriter  # noqa: PLC0415 - optional

    architecture = architecture_of(model.config)
    writer = GGUFWriter(path, architecture.name)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[kind])
    add_metadata(writer, model.config)
    add_tokenizer(writer, tokenizer, embeddings=model.config.vocab_size, end_ids=end_ids)
    # Shapes first, then one tensor at a time: the file may be as large as the memory.
    types = {}
    for each, values in tensors(model):
        types[each] = type_of(each, values.shape, kind)
        size = size_of(values.shape, types[each])
        writer.add_tensor_info(each, values.shape, numpy.dtype("float32"), size, raw_dtype=types[each])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for each, values in tensors(model):
        writer.write_tensor_data(quantized(each, values, types[each]))
    writer.close()


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """All parameters under llama.cpp's names, and tensors computed from the config."""
    from gguf import MODEL_ARCH, get_tensor_name_map  # noqa: PLC0415 - optional

    config: Any = model.config
    architecture = architecture_of(config)
    names = get_tensor_name_map(MODEL_ARCH[architecture.name.upper()], config.num_hidden_layers)
    for name, values in model.named_parameters():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ConfigError(f"--gguf: llama.cpp has no tensor for {name} in {architecture.name} models")
        yield found, architecture.convert(name, values.detach().cpu(), config)
    yield from extra_tensors(config)


def read_gguf(path: Path, config: Any) -> nn.Module:
    """The model in a file, dequantized, through plain transformers.

    The file gives the config too, except where transformers does not read all of it: GPT-2, Qwen 3 and Gemma 3 (widths
    of heads), scaled rotary positions, and biases of Llama models.
    """
    partial = (
        config.model_type in ("gpt2", "qwen3", "gemma3_text")
        or rope_of(config).get("rope_type", "default") != "default"
        or any(getattr(config, name, False) for name in ("attention_bias", "mlp_bias"))
    )
    # stderr: a progress bar that the verbosity of transformers does not hide.
    with quiet(), redirect_stderr(io.StringIO()):
        return AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            quantization_config=GgufConfig(dequantize=True),
            dtype="float32",
            trust_remote_code=False,
            **({"config": config} if partial else {}),
        ).eval()
