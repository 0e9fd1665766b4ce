"""Prepares the rows of a run: from the cache of tokens if they are many, else from their sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from postrain.data import audit as audits
from postrain.data import cache_key
from postrain.data.chat import Template
from postrain.data.decontaminate import Benchmark
from postrain.data.files import data_files
from postrain.data.item_store import stored
from postrain.data.mixture import Mixture
from postrain.data.mixture_audit import of_run
from postrain.data.mixture_inputs import check_settings, is_mixed, parts_of, required_template
from postrain.data.preparation import Preparation, Prepared, Store
from postrain.data.records import Record
from postrain.data.schedule import DataSpec
from postrain.data.settings import DataSettings
from postrain.data.sources import Hub, Paraphrases, World
from postrain.data.template_choice import Mode
from postrain.data.token_cache import MIN_BYTES, TokenCache

MakeTemplate = Callable[[Mode], Template]
GENERATED = (World, Paraphrases)
"""Sources whose settings determine their rows."""


def prepare(
    settings: DataSettings, spec: DataSpec, make_template: MakeTemplate, benchmarks: Sequence[Benchmark]
) -> Prepared:
    """All rows as tokens, audited. Raises ConfigError for rows that cannot be trained on."""
    check_settings(settings)
    template = make_template(required_template(parts_of(settings, spec)))
    rows = RowsOfRun(settings, spec, template, benchmarks)
    cache = rows.cache()
    found = rows.prepared(stored) if cache is None else cache.prepared(rows.prepared, rows.train_records)
    return replace(rows, spec=spec.of_items(len(found.train))).of_run(found)


@dataclass(frozen=True)
class RowsOfRun:
    """The rows of one source or of several."""

    settings: DataSettings
    spec: DataSpec
    template: Template
    benchmarks: Sequence[Benchmark]

    def prepared(self, store: Store) -> Prepared:
        """All rows as tokens, without what depends on the weights and updates of the run."""
        if is_mixed(self.settings):
            return self._mixture(store).prepare()
        return self._preparation(store).prepare(self.settings.load_rows())

    def train_records(self) -> Sequence[Record]:
        """The training records."""
        if is_mixed(self.settings):
            return self._mixture(stored).train_records()
        return self._preparation(stored).split(self.settings.load_rows()).train

    def _mixture(self, store: Store) -> Mixture:
        return Mixture(self.settings, self.spec, self.template, self.benchmarks, store)

    def _preparation(self, store: Store) -> Preparation:
        return Preparation(self.settings, self.spec, self.template, self.benchmarks, store=store)

    def of_run(self, found: Prepared) -> Prepared:
        """Prepared rows with the fields of their audit that do not depend on them."""
        if is_mixed(self.settings):
            return of_run(self.settings, self.spec, found)
        samples = audits.show(found.train, self.template, self.settings.show_mask)
        audit = replace(found.audit, updates=self.spec.updates, batch_size=self.spec.batch_size, samples=samples)
        return replace(found, audit=audit)

    # The cache ----------------------------------------------------------------------------------------------------

    def cache(self) -> TokenCache | None:
        """The cache of the tokens; None for few rows, or rows that cannot be identified without reading them."""
        if not self.settings.cache:
            return None
        parts = [*parts_of(self.settings, self.spec).values()]
        sources = [part.source for part in parts if part.source and not part.path]
        if not all(isinstance(source, (*GENERATED, Hub)) for source in sources):
            return None
        hub = [source for source in sources if isinstance(source, Hub)]
        try:
            files = [file for path in self._paths() for file in data_files(path)]
            size = sum(file.stat().st_size for file in files) + sum(source.size() for source in hub)
            if size < MIN_BYTES:
                return None
            versions = [source.version() for source in hub]
            key = cache_key.key(self.settings, self.spec, self.template, self.benchmarks, files, versions)
        except OSError:  # the reader reports it
            return None
        return None if key is None else TokenCache(key, self.spec.kind, self.template, size)

    def _paths(self) -> list[str]:
        """The paths of all rows."""
        given = self.settings.eval_path
        held_out = [given] if isinstance(given, str) else [*(given or {}).values()]
        parts = parts_of(self.settings, self.spec).values()
        return [*(path for part in parts for path in (part.path, part.eval_path) if path), *held_out]
