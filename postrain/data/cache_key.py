"""The key of the cache of tokens: everything that the rows, tokens and counts of a run depend on."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import asdict, fields, replace
from datetime import datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path

from postrain.data.chat import Template
from postrain.data.decontaminate import Benchmark
from postrain.data.rendering import current_clock
from postrain.data.schedule import DataSpec
from postrain.data.settings import DataSettings

PACKAGE = Path(__file__).parents[1]
CODE = ("data", "world", "seeds.py", "types.py")
"""The part of this package that reads and encodes rows."""
LIBRARIES = ("transformers", "tokenizers", "jinja2", "pyarrow")
SETTINGS_OF_A_RUN = ("cache", "show_mask", "completion_tokens", "mix_by", "mix_temperature")
"""Settings that do not change the items. Nor do the weights of sources, except 0."""
COUNTS_OF_A_RUN = ("updates", "batch_size", "num_train_epochs")
"""The fields of DataSpec that do not change the items."""
DATE_FORMAT = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


def key(
    settings: DataSettings,
    spec: DataSpec,
    template: Template,
    benchmarks: Iterable[Benchmark],
    files: Iterable[Path],
    versions: Iterable[str] = (),
) -> str | None:
    """The key as a hash; None for a tokenizer that cannot be identified. Raises OSError for an unreadable file.

    `versions` identify the rows of the Hub.
    """
    backend = getattr(template.tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    kept = {f.name: repr(getattr(settings, f.name)) for f in fields(DataSettings) if f.name not in SETTINGS_OF_A_RUN}
    kept["mix"] = repr([(name, replace(part, weight=float(part.weight != 0))) for name, part in settings.mix.items()])
    replay = settings.replay if spec.updates else None
    kept["replay"] = repr(replay and replace(replay, share=0.1 if replay.share else 0.0))
    parts = [
        repr(sorted(kept.items())),
        repr({name: value for name, value in asdict(spec).items() if name not in COUNTS_OF_A_RUN}),
        repr((type(template.tokenizer).__name__, template.tokenizer.special_tokens_map, backend.to_str())),
        repr((template.name, template.stop_ids, _source(template))),
        *(repr((one, *one.places.items(), *one.words.items(), *one.short.items())) for one in benchmarks),
        code_digest(),
        *versions,
        *(f"{file} {file_digest(file)}" for file in files),
    ]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()[:24]


def _source(template: Template) -> tuple[str, list[str]]:
    """The template, with the dates that it writes."""
    source, moment = template.source(), current_clock() or datetime.now()
    formats = [found for _, found in DATE_FORMAT.findall(source)]
    known = len(formats) == source.count("strftime_now")
    return source, [moment.strftime(one) for one in formats] if known else [repr(moment)]


def file_digest(file: Path) -> str:
    """sha256 of the content of a file."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@cache
def code_digest() -> str:
    """Hash of the code that reads and encodes rows, and of the versions of the libraries that it uses."""
    digest = hashlib.sha256(repr([version(name) for name in LIBRARIES]).encode())
    for place in (PACKAGE / name for name in CODE):
        for file in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if file.suffix in (".py", ".jinja"):
                digest.update(file.read_bytes())
    return digest.hexdigest()
