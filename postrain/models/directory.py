"""Checks and reads a Hugging Face model directory without loading weights.

Does not check that the weights fit the config; loading does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

from safetensors import SafetensorError, safe_open

from postrain.errors import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
LONGROPE = ("longrope", "su")
# The fingerprint of a larger file reads this many windows of 1 MiB: enough to distinguish two trainings, but not
# cryptographic authentication.
WINDOWS = 64
MEBIBYTE = 2**20


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object in a model directory."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path.parent} has no {path.name}; is it a Hugging Face model directory?") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); copy the model directory again") from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} must hold a JSON object, not a {type(found).__name__}; copy the directory again")
    return found


def check_config(directory: Path) -> None:
    """Refuses a config.json with Hub kernels: `attn_implementation: owner/kernel` would run their code."""
    for key, value in _leaves(read_json(directory / "config.json")):
        if key.endswith("_implementation") and isinstance(value, str) and "/" in value:
            raise ConfigError(
                f"{directory / 'config.json'}: {key} names {value}, which would run code from the Hub; remove the key"
            )


def check_adapter(directory: Path) -> None:
    """Refuses an adapter whose config makes PEFT import a module."""
    if read_json(directory / ADAPTER_CONFIG).get("megatron_config"):
        raise ConfigError(
            f"{directory / ADAPTER_CONFIG}: megatron_config would import a module named in this file; remove the key"
        )


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """All scalars of a JSON value with their key; inside the mapping of an `..._implementation` key, with that key."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(item, key if key.endswith("_implementation") else str(name))
    elif isinstance(value, list):
        for item in value:
            yield from _leaves(item, key)
    else:
        yield key, value


def is_adapter(directory: Path) -> bool:
    """Whether the directory holds a PEFT adapter."""
    return (directory / ADAPTER_CONFIG).is_file()


def has_tokenizer(directory: Path) -> bool:
    """Whether the directory holds a tokenizer."""
    return any((directory / name).is_file() for name in TOKENIZERS)


def check_tokenizer(directory: Path) -> None:
    """Raises ConfigError without a tokenizer."""
    if not has_tokenizer(directory):
        raise ConfigError(
            f"{directory} has no tokenizer (none of {', '.join(TOKENIZERS)}); "
            "copy the tokenizer files of its base model into it"
        )


def check_weights(directory: Path, stem: str = "model") -> None:
    """Raises ConfigError unless `stem`.safetensors, or each of its shards, exists and is complete."""
    for name in weight_files(directory, stem) or _missing_weights(directory, stem):
        if not (directory / name).is_file():
            raise ConfigError(f"{directory} lacks {name}, which {stem}.safetensors.index.json lists; copy it again")
        try:
            with safe_open(directory / name, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{directory / name} is damaged or truncated ({error}); copy it again") from None


def weight_files(directory: Path, stem: str = "model") -> list[str]:
    """The names of `stem`.safetensors or of its shards; [] without both. Raises ConfigError for a file elsewhere."""
    if (directory / f"{stem}.safetensors").is_file():
        return [f"{stem}.safetensors"]
    if (directory / f"{stem}.safetensors.index.json").is_file():
        names = sorted(set(read_json(directory / f"{stem}.safetensors.index.json")["weight_map"].values()))
        if outside := [name for name in names if Path(name).name != name]:
            raise ConfigError(f"{directory}: its {stem}.safetensors.index.json names {outside[0]}, a file elsewhere")
        return names
    return []


def _missing_weights(directory: Path, stem: str) -> NoReturn:
    pickled = [path.name for suffix in ("*.bin", "*.pt", "*.pth") for path in sorted(directory.glob(suffix))]
    if pickled:
        raise ConfigError(
            f"{directory} has its weights as a pickle ({pickled[0]}), which can run code on loading; "
            "convert them to safetensors with model.save_pretrained(DIR)"
        )
    raise ConfigError(f"{directory} has no weights ({stem}.safetensors); copy the complete model directory")


def context_length(config: Mapping[str, Any]) -> int:
    """The context length in tokens, up to which positions do not depend on other rows of the batch."""
    config = config.get("text_config", config)
    for key in CONTEXT_KEYS:
        if isinstance(config.get(key), int):
            return min(config[key], rotary_limit(config) or config[key])
    # Recurrent models and ALiBi have no limit in their config.
    return 2**20


def rotary_limit(config: Mapping[str, Any]) -> int | None:
    """The row length up to which LongRoPE (Ding et al. 2024) uses the same scaling; None for other models.

    A longer row changes the frequencies of its whole batch, so results would depend on the micro-batches. Dynamic NTK
    scaling is constant up to max_position_embeddings, which rows never exceed.
    """
    config = config.get("text_config", config)
    settings = [found for key in ("rope_parameters", "rope_scaling") if isinstance(found := config.get(key), Mapping)]
    # Some architectures have settings per layer type.
    parts = settings + [part for one in settings for part in one.values() if isinstance(part, Mapping)]
    limits = [
        part.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
        for part in parts
        if part.get("rope_type", part.get("type")) in LONGROPE
    ]
    return min((limit for limit in limits if isinstance(limit, int)), default=None)


def saved_end_ids(directory: Path) -> list[int]:
    """The tokens that end a completion: those of the generation config in a model directory, [] without one."""
    path = directory / "generation_config.json"
    return listed_ids(read_json(path).get("eos_token_id")) if path.is_file() else []


def listed_ids(found: Any) -> list[int]:
    """The token ids of a field of a generation config: one, several or none. Nothing checks their type."""
    return [token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)]


def head_of(config: Mapping[str, Any]) -> Literal["causal", "scalar"]:
    """The head of the saved weights."""
    names = config.get("architectures") or []
    return "scalar" if any("SequenceClassification" in str(name) for name in names) else "causal"


def fingerprint(*directories: Path) -> str:
    """A short hash of configs, tokenizers and weights."""
    digest = hashlib.sha256()
    for directory in directories:
        # The files of a slow tokenizer; tokenizer.json includes their content.
        slow = () if (directory / "tokenizer.json").is_file() else ("merges.txt", "vocab.txt")
        for path in sorted(directory.iterdir()):
            if (path.suffix in (".json", ".safetensors", ".jinja", ".model") or path.name in slow) and path.is_file():
                digest.update(f"{path.name} {fingerprint_file(path)}".encode())
    return digest.hexdigest()[:16]


def fingerprint_file(path: Path) -> str:
    """A short hash of a file, or of evenly spaced windows of a large file."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WINDOWS * MEBIBYTE:
            digest.update(file.read())
        else:
            for window in range(WINDOWS):
                file.seek(window * (size - MEBIBYTE) // (WINDOWS - 1))
                digest.update(file.read(MEBIBYTE))
    return digest.hexdigest()[:16]
