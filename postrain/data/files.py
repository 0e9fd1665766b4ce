"""Reads tables from paths and from the Hugging Face Hub.

`data.path` is a file, a folder of files, a glob, or a directory written by `save_to_disk`. In folders and globs, files
with eval, valid or dev in their name or subfolder, else those with test, are held out. The Hub is read through
`datasets`: from the network if it responds within PROBE_SECONDS, else from the cache (without a network `datasets`
retries for 23 seconds).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] - httpx or httpx2, whichever the client uses
)

from postrain.data.readers import COMPRESSED, READERS, Table, join_tables, make_table, read_file, suffix_of
from postrain.data.values import Struct
from postrain.errors import ConfigError, one_line
from postrain.models.hub import PROBE_SECONDS, REQUEST_SECONDS, Unreachable, hub_errors, with_timeout

HELD_OUT = tuple(
    re.compile(rf"(?:^|[^a-z])(?:{words})(?:[^a-z]|$)")
    for words in ("eval|evaluation|valid|validation|val|dev", "test")
)
"""Names of held-out rows. Beside a validation split, a test split is left out: held-out rows choose checkpoints."""
GLOB = "*?["
SAVED = ("dataset_dict.json", "state.json")
"""A folder with one of these files is a saved data set."""
METADATA_FILES = (*SAVED, "dataset_info.json", "dataset_infos.json")
"""Files with the description of a data set, without rows."""


def read_path(path: str) -> tuple[Table, Table | None]:
    """Training and held-out rows of a path; None if no held-out rows are found by name. Raises ConfigError."""
    place = Path(path).expanduser()
    if (place / "dataset_dict.json").is_file():
        return _read_splits(place)
    if (place / "state.json").is_file():
        return _read_saved(place), None
    if place.is_dir():
        return _read_files(path, place, data_files(path))
    if not place.exists() and any(letter in path for letter in GLOB):
        fixed = next(parent for parent in place.parents if not any(letter in str(parent) for letter in GLOB))
        return _read_files(path, fixed, data_files(path))
    return read_file(path), None


def data_files(path: str) -> list[Path]:
    """The files that `read_path` reads: a file, those of a folder that hold rows, those of a glob, or all files of a
    saved data set."""
    place = Path(path).expanduser()
    if place.is_dir():
        files, saved = sorted(place.rglob("*")), any((place / name).is_file() for name in SAVED)
        return [file for file in files if (file.is_file() if saved else _holds_rows(file, place))]
    if place.exists():
        return [place]
    return [Path(file) for file in sorted(glob(str(place), recursive=True)) if Path(file).is_file()]


def _holds_rows(file: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    return file.is_file() and suffix_of(file) in READERS and file.name not in METADATA_FILES and not hidden


def _read_files(path: str, folder: Path, files: list[Path]) -> tuple[Table, Table | None]:
    """Training and held-out rows of the files of a path, by their names below `folder`."""
    suffixes = sorted({suffix_of(file) for file in files})
    if not files:
        raise ConfigError(
            f"data.path: no readable file in {path}; expected {', '.join(READERS)}, as they are or compressed "
            f"({', '.join(COMPRESSED)})"
        )
    if len(suffixes) > 1:
        raise ConfigError(
            f"data.path: {path} holds files of several kinds ({', '.join(suffixes)}); name one kind, as in "
            f"data.path='{path.split('*')[0].rstrip('/')}/*{suffixes[0]}'"
        )
    ranks = {file: _rank(file.relative_to(folder).as_posix()) for file in files}
    train = [file for file in files if ranks[file] == len(HELD_OUT)]
    if not train:
        return _joined(path, files), None
    held_out = [file for file in files if ranks[file] == min(ranks.values())]
    return _joined(path, train), _joined(path, held_out) if held_out != train else None


def _rank(name: str) -> int:
    """The index in HELD_OUT of the first pattern in a name; the number of patterns for training rows."""
    return next((at for at, words in enumerate(HELD_OUT) if words.search(name.lower())), len(HELD_OUT))


def _joined(path: str, files: list[Path]) -> Table:
    tables = [read_file(str(file)) for file in files]
    return tables[0] if len(tables) == 1 else join_tables(f"{path} ({len(tables)} files)", tables)


def _read_splits(place: Path) -> tuple[Table, Table | None]:
    """The split `train`, and the first split with the name of a validation split, else of a test split."""
    splits = sorted(folder.name for folder in place.iterdir() if (folder / "state.json").is_file())
    if "train" not in splits:
        raise ConfigError(f"data.path: {place} has no split train; name one, as in data.path={place}/SPLIT: {splits}")
    held_out = min(splits, key=_rank)
    return _read_saved(place / "train"), _read_saved(place / held_out) if _rank(held_out) < len(HELD_OUT) else None


def _read_saved(place: Path) -> Table:
    # Start-up time: only runs with saved data sets pay for the import.
    import datasets  # noqa: PLC0415

    try:
        return make_table(str(place), "row", enumerate(rows_of(datasets.load_from_disk(str(place)))))
    except ConfigError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = one_line(error, 160)
        raise ConfigError(f"{place}: not a data set written by save_to_disk ({reason})") from None


# The Hub ----------------------------------------------------------------------------------------------------------


def open_split(
    repo: str, subset: str | None, split: str, revision: str | None, data_files: Mapping[str, str] | None = None
) -> Any:
    """One split as a `datasets.Dataset`, memory-mapped.

    `data_files` are the files to download, by split; None downloads those of all splits.
    """
    problem = None if Path(repo).is_dir() else _hub_problem(repo, revision)
    # Start-up time: only runs with Hub data pay for the import.
    import datasets.config  # noqa: PLC0415
    from datasets.exceptions import DatasetsError  # noqa: PLC0415

    try:
        # RuntimeError: the data set has a loading script, which `datasets` 5 does not run.
        with _offline(datasets.config, problem is not None):
            return datasets.load_dataset(
                repo,
                subset,
                split=split,
                revision=None if problem else revision,
                data_files=None if data_files is None else dict(data_files),
            )
    except (OSError, ValueError, RuntimeError, DatasetsError, HfHubHTTPError, HTTPError) as error:
        raise ConfigError(_load_error(repo, subset, split, problem, error)) from None


def rows_of(dataset: Any) -> Iterator[Struct]:
    """The rows of a `datasets.Dataset` as plain values; images and audio stay bytes (layouts.py refuses them)."""
    for table in dataset.with_format("arrow").iter(batch_size=1000):
        yield from map(Struct, table.to_pylist())


def _load_error(repo: str, subset: str | None, split: str, problem: str | None, error: Exception) -> str:
    if problem:
        return (
            f"data set {repo}: not in the cache {constants.HF_HOME}, and the Hub cannot be reached ({problem}); run "
            "once with a network and copy that cache, or give a file with data=jsonl data.path=FILE"
        )
    wanted = f"the split {split}" + (f" of the subset {subset}" if subset else "")
    return f"data set {repo}: {wanted} cannot be read ({one_line(error)}); check data.source"


@contextmanager
def _offline(config: Any, offline: bool) -> Iterator[None]:
    """Makes `datasets` use its cache without trying the network."""
    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or offline
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _hub_problem(repo: str, revision: str | None) -> str | None:
    """Why the Hub cannot be reached; None if it responds. Raises ConfigError if it has no such data set."""

    def request() -> None:
        with hub_errors(
            "data set", repo, f"data set {repo}", revision, keys=("data.source.repo", "data.source.revision")
        ):
            HfApi().dataset_info(repo, revision=revision, timeout=REQUEST_SECONDS)

    try:
        with_timeout(PROBE_SECONDS, request)
    except Unreachable as reason:
        return str(reason)
    return None
