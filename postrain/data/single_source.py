"""Prepares the rows of one source: from the cache of tokens if its files are large, else from the source."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from postrain.data import cache_key
from postrain.data.chat import Template
from postrain.data.decontaminate import Benchmark
from postrain.data.preparation import Preparation, Prepared, Store
from postrain.data.records import Record
from postrain.data.rendering import Mode
from postrain.data.schedule import DataSpec
from postrain.data.settings import DataSettings
from postrain.data.token_cache import MIN_BYTES, TokenCache

MakeTemplate = Callable[[Mode], Template]


def prepare_source(
    settings: DataSettings, spec: DataSpec, make_template: MakeTemplate, benchmarks: Sequence[Benchmark]
) -> Prepared:
    """All rows as tokens, audited. Raises ConfigError."""
    files = _large_files(settings)
    if files:
        template = make_template("auto")  # files require no template
        cache = _cache(settings, spec, template, benchmarks, files)
        if cache is not None:
            return _cached(cache, settings, Preparation(settings, spec, template, benchmarks))
    loaded = settings.load_rows()
    return Preparation(settings, spec, make_template(loaded.template), benchmarks).prepare(loaded)


def _cached(cache: TokenCache, settings: DataSettings, preparation: Preparation) -> Prepared:
    def build(store: Store) -> Prepared:
        return replace(preparation.fresh(), store=store).prepare(settings.load_rows())

    def records() -> Sequence[Record]:
        return preparation.fresh().split(settings.load_rows()).train

    return preparation.of_this_run(cache.prepared(build, records))


def _large_files(settings: DataSettings) -> list[Path]:
    """The files of the rows if they are worth a cache; else none."""
    eval_path = settings.eval_path
    if not settings.cache or settings.path is None or isinstance(eval_path, Mapping):
        return []
    try:
        files = cache_key.files_below(settings.path)
        if sum(file.stat().st_size for file in files) < MIN_BYTES:
            return []
        return files + (cache_key.files_below(eval_path) if eval_path else [])
    except OSError:  # the reader reports it
        return []


def _cache(
    settings: DataSettings,
    spec: DataSpec,
    template: Template,
    benchmarks: Sequence[Benchmark],
    files: Sequence[Path],
) -> TokenCache | None:
    try:
        key = cache_key.key(settings, spec, template, benchmarks, files)
        size = sum(file.stat().st_size for file in files)
    except OSError:  # the reader reports it
        return None
    return None if key is None else TokenCache(key, spec.kind, template, size)
