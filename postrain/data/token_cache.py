"""A cache on disk of the tokens of large files, so that a second start takes seconds.

One directory holds the training and held-out items (Arrow, memory-mapped), the held-out records, the audit and a
checksum of each file. A directory is written under another name and renamed when it is complete. Its name is the key
(cache_key.py), so changed files, settings, tokenizers and code never find it. Several processes build it once.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

from pydantic import TypeAdapter

from postrain.data import cache_limit, item_store
from postrain.data.audit import Audit
from postrain.data.chat import Template
from postrain.data.encode import Encoded
from postrain.data.item_values import Unstorable
from postrain.data.kinds import KINDS
from postrain.data.preparation import HeldOutSet, Prepared, SourcePart, Store, alternating
from postrain.data.record_reader import Split
from postrain.data.records import Record
from postrain.hardware.environment import is_first_rank
from postrain.models.disk_cache import cache_directory, write_directory

MIN_BYTES = 4_000_000
"""Smaller files are tokenized at every start, in a few seconds."""
SPACE = 4
"""Free space on the disk that a cache needs, in multiples of the size of the files."""
TRAIN, HELD_OUT, ABOUT = "train-{}.arrow", "held_out.arrow", "about.json"

Build = Callable[[Store], Prepared]
"""Prepares the rows, and keeps the training items by a function."""


@dataclass(frozen=True)
class TokenCache:
    """The cached tokens of one key."""

    key: str
    kind: str
    """The record kind."""
    template: Template
    size: int
    """Bytes of the files with the rows."""

    @property
    def directory(self) -> Path:
        """Where the tokens are kept."""
        return cache_directory() / f"tokens-{self.key}"

    def prepared(self, build: Build, records: Callable[[], Sequence[Record]]) -> Prepared:
        """Reads the cache, or builds the rows and writes it. Without a writable cache the rows stay in memory.

        `records` reads the training records again.
        """
        cache_limit.limit()  # reports a mistake before rows are read
        found = self._read(records)
        try:
            if found is None:
                with self._locked():
                    found = self._read(records) or self._built(build, records)
        except (OSError, Unstorable) as problem:
            _print(
                f"note: the tokens are not cached, so the next start tokenizes the rows again: {problem}; set "
                "POSTRAIN_CACHE to another folder"
            )
        return build(item_store.stored) if found is None else found

    def _built(self, build: Build, records: Callable[[], Sequence[Record]]) -> Prepared | None:
        """Builds the rows in the cache."""
        # Left by a killed process, or damaged. The lock is held, so no process writes them.
        for old in (self.directory, *self.directory.parent.glob(f".{self.directory.name}-*")):
            shutil.rmtree(old, ignore_errors=True)
        self._check_space()
        write_directory(self.directory, lambda directory: self._write(directory, build))
        _print(f"data: tokens kept in {self.directory} ({cache_limit.size(self.directory) / 1e6:,.0f} MB)")
        if deleted := cache_limit.delete_surplus(self.directory):
            names = ", ".join(one.name for one in deleted)
            _print(f"data: deleted the caches used least recently, beyond ${cache_limit.VARIABLE}: {names}")
        return self._read(records)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Lets one process at a time build this cache."""
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self.directory.with_suffix(".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _print("data: another process tokenizes the same rows; waiting for it")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _check_space(self) -> None:
        free, needed = shutil.disk_usage(self.directory.parent).free, SPACE * self.size
        if free < needed:
            raise OSError(
                f"{self.directory.parent} has {free / 1e6:,.0f} MB of free space, of {needed / 1e6:,.0f} MB that may "
                "be needed"
            )

    # Files --------------------------------------------------------------------------------------------------------

    def _write(self, directory: Path, build: Build) -> None:
        train: list[str] = []

        def store(items: Iterable[Encoded]) -> Sequence[Encoded]:
            train.append(TRAIN.format(len(train)))
            item_store.write(directory / train[-1], items)
            return item_store.read(directory / train[-1])

        found = build(store)
        sets = found.held_out or (HeldOutSet("", found.records.held_out, found.eval),)
        item_store.write(directory / HELD_OUT, (item for one in sets for item in one.items))
        about = {
            "files": {name: _checksum(directory / name) for name in (*train, HELD_OUT)},
            "train": train,
            "held_out": [self._plain_set(one) for one in sets],
            "columns": common_columns(found.records.train),
            "rows": len(found.records.train),
            "audit": asdict(found.audit),
            "sources": [asdict(one) for one in found.sources],
            "notes": [*self.template.notes],
        }
        (directory / ABOUT).write_text(json.dumps(about), encoding="utf-8")

    def _read(self, read_records: Callable[[], Sequence[Record]]) -> Prepared | None:
        """The cached rows; None if there are none, or if they are damaged or incomplete."""
        try:
            about = json.loads((self.directory / ABOUT).read_text(encoding="utf-8"))
            if any(_checksum(self.directory / name) != found for name, found in about["files"].items()):
                return None
            as_audit = TypeAdapter(Audit).validate_python
            audit = as_audit(about["audit"])
            sources = tuple(SourcePart(one["name"], as_audit(one["audit"]), one["offset"]) for one in about["sources"])
            train = item_store.joined(item_store.read(self.directory / name) for name in about["train"])
            sets = self._sets(about["held_out"], iter(item_store.read(self.directory / HELD_OUT)))
        except (OSError, ValueError, LookupError, TypeError):
            return None
        cache_limit.mark_used(self.directory)
        self.template.notes.update(dict.fromkeys(about["notes"]))
        held_out = alternating([one.records for one in sets if one.in_total])
        return Prepared(
            template=self.template,
            records=Split(TrainingRecords(about["rows"], read_records), held_out, {}),
            train=train,
            eval=alternating([one.items for one in sets if one.in_total]),
            audit=audit,
            held_out=sets if sources else (),
            columns=tuple(about["columns"]),
            sources=sources,
        )

    def _plain_set(self, one: HeldOutSet) -> dict[str, Any]:
        """A part of the held-out rows as JSON, without its items. Raises Unstorable."""
        kind = type(one.records[0]).__name__ if one.records else self.kind
        records = [_plain(record) for record in one.records]
        if repr(_records(kind, records)) != repr(one.records):
            raise Unstorable("a held-out row that JSON changes")
        return {"name": one.name, "kind": kind, "records": records, "items": len(one.items), "in_total": one.in_total}

    def _sets(self, values: list[dict[str, Any]], items: Iterator[Encoded]) -> tuple[HeldOutSet, ...]:
        return tuple(
            HeldOutSet(
                name=value["name"],
                records=_records(value["kind"], value["records"]),
                items=tuple(islice(items, value["items"])),
                in_total=value["in_total"],
            )
            for value in values
        )


class TrainingRecords(Sequence[Record]):
    """The training records of cached items, which are read from the source when they are first used."""

    def __init__(self, rows: int, read: Callable[[], Sequence[Record]]) -> None:
        self.rows, self.read = rows, read

    def __len__(self) -> int:
        return self.rows

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._records[index]

    @cached_property
    def _records(self) -> Sequence[Record]:
        return self.read()


def common_columns(records: Sequence[Record]) -> tuple[str, ...]:
    """The columns that all records have, in the order of the first."""
    common = set.intersection(*(set(record.columns) for record in records))
    return tuple(name for name in records[0].columns if name in common)


def _records(kind: str, values: list[Any]) -> tuple[Record, ...]:
    return tuple(map(TypeAdapter(KINDS[kind]).validate_python, values))


def _plain(record: Record) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(asdict(record)))
    except (TypeError, ValueError):
        raise Unstorable("a held-out row that is not JSON") from None


def _checksum(file: Path) -> list[int]:
    """Size and CRC-32 of a file."""
    crc, size = 0, 0
    with file.open("rb") as content:
        while block := content.read(1 << 22):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return [size, crc]


def _print(line: str) -> None:
    if is_first_rank():
        print(line, flush=True)
