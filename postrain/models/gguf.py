"""Converts weights in llama.cpp's GGUF format, also from installed Python packages, to a Hugging Face directory.

A package holds a whole file, or requires packages that hold its parts (`NAME.gguf.part00`, `NAME.gguf.part01`, ...),
which are joined once. Weights are dequantized once and cached; the quantization error remains.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
from importlib import metadata
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from postrain.errors import ConfigError
from postrain.models.directory import fingerprint_file
from postrain.models.disk_cache import disk_cached
from postrain.models.quiet import quiet
from postrain.models.vocabulary import ensure_pad

PART = re.compile(r"(.+\.gguf)\.part(\d+)")
NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


def find_gguf(package: str, *, split: bool = False) -> Path | None:
    """The GGUF file in an installed package, which is not imported; None if it is not installed.

    With `split`, the file joined from the parts in the packages that it requires. Raises ConfigError for missing parts.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    if split:
        return joined(package)
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    return next((path for path in found if path.is_file()), None)


def install_command(package: str, *, split: bool = False) -> str:
    """The command that installs a package with a GGUF file and the reader of the format.

    Without the packages that it requires, such as an inference engine, unless they hold its parts.
    """
    return f"pip install {package} gguf" if split else f"pip install --no-deps {package} && pip install gguf"


def joined(package: str) -> Path:
    """The file joined from its parts in the cache."""
    parts = find_parts(package)
    sizes = [file.size or path.stat().st_size for file, path in parts]
    for (file, path), size in zip(parts, sizes, strict=True):
        if not path.is_file() or path.stat().st_size != size:
            raise ConfigError(f"{path} is incomplete: {file.name} has {size} bytes; reinstall {package} and its parts")

    name = parts[0][0].name.rpartition(".part")[0]

    def join(directory: Path) -> None:
        with (directory / name).open("wb") as whole:
            for _, path in parts:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)

    directory = disk_cached(f"{package}-{metadata.version(package)}-{sum(sizes)}", join)
    if (directory / name).stat().st_size != sum(sizes):
        raise ConfigError(f"{directory / name} does not have the {sum(sizes)} bytes of its parts; delete {directory}")
    return directory / name


def find_parts(package: str) -> list[tuple[metadata.PackagePath, Path]]:
    """The parts of one file in the packages that `package` requires, in order, with their paths."""
    required = [match[0] for text in metadata.requires(package) or [] if (match := NAME.match(text))]
    found: dict[int, metadata.PackagePath] = {}
    for name in required:
        try:
            files = metadata.files(name) or []
        except metadata.PackageNotFoundError:
            raise ConfigError(f"{package} needs {name}, which is not installed: pip install {package}") from None
        found |= {int(match[2]): file for file in files if (match := PART.fullmatch(file.name))}
    numbers = sorted(found)
    if not numbers or numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        raise ConfigError(
            f"{package}: expected all parts of a .gguf file in the packages it requires, found "
            f"{', '.join(map(str, numbers)) or 'none'}; reinstall them: pip install --force-reinstall {package}"
        )
    return [(found[number], Path(str(found[number].locate()))) for number in numbers]


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
