"""Folders, globs, compressed files and saved data sets."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pytest

from postrain.data.files import data_files, read_path
from postrain.data.sources import Rows, read_held_out
from postrain.errors import ConfigError
from tests.data.helpers import write_lines

ROWS = [{"prompt": f"p{number}", "completion": "c"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
COMPRESS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda raw: pyarrow.compress(raw, "zstd", asbytes=True),
}


def values(table) -> list[dict]:
    return [dict(row.values) for row in table.rows]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_format_of_a_compressed_file_is_its_inner_suffix(suffix, tmp_path):
    for name, raw in (("x.jsonl", LINES), ("x.json", json.dumps(ROWS).encode()), ("x.csv", b"prompt\np0\np1\n")):
        (tmp_path / f"{name}.{suffix}").write_bytes(COMPRESS[suffix](raw))
        table, held_out = read_path(str(tmp_path / f"{name}.{suffix}"))
        assert values(table) == (ROWS if "json" in name else [{"prompt": "p0"}, {"prompt": "p1"}])
        assert held_out is None


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", [lambda raw: raw[: len(raw) // 2], lambda raw: b"not compressed"])
def test_damaged_compressed_file_is_a_one_line_error(suffix, damage, tmp_path):
    (tmp_path / f"x.jsonl.{suffix}").write_bytes(damage(COMPRESS[suffix](LINES)))
    with pytest.raises(ConfigError, match=rf"x\.jsonl\.{suffix}: not a complete .* file") as caught:
        read_path(str(tmp_path / f"x.jsonl.{suffix}"))
    assert "\n" not in str(caught.value)


def test_folder_is_read_in_order_and_each_row_keeps_its_file_and_line(tmp_path):
    (tmp_path / "deep").mkdir()
    write_lines(tmp_path / "deep" / "b.jsonl", ROWS[1:])
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b"\n" + LINES))
    (tmp_path / "README.md").write_text("no rows")
    (tmp_path / ".hidden.jsonl").write_text("no rows")
    table, held_out = read_path(str(tmp_path))
    assert values(table) == [*ROWS, *ROWS[1:]]
    assert held_out is None
    assert len({row.number for row in table.rows}) == 5
    places = [table.where(row.number) for row in table.rows]
    # The blank line of the first file is counted.
    assert places[0] == f"{tmp_path / 'a.jsonl.gz'}, line 2"
    assert places[2:4] == [f"{tmp_path / 'a.jsonl.gz'}, line 4", f"{tmp_path / 'deep' / 'b.jsonl'}, line 1"]


@pytest.mark.parametrize("name", ["test.jsonl", "rows.eval.jsonl", "validation-00000-of-00001.jsonl", "dev_2.jsonl"])
@pytest.mark.parametrize("pattern", ["", "/*.jsonl"])
def test_held_out_files_of_a_folder_are_not_training_data(name, pattern, tmp_path):
    write_lines(tmp_path / "contest.jsonl", ROWS[:2])
    write_lines(tmp_path / name, ROWS[2:])
    train, held_out = read_path(f"{tmp_path}{pattern}")
    assert values(train) == ROWS[:2]
    assert held_out is not None
    assert values(held_out) == ROWS[2:] == values(read_held_out(str(tmp_path)))
    # A held-out file given by its full name is read as training data.
    assert values(read_path(str(tmp_path / name))[0]) == ROWS[2:]


@pytest.mark.parametrize("pattern", ["", "/*/*.jsonl", "/**/*.jsonl"])
def test_held_out_subfolders_are_not_training_data(pattern, tmp_path):
    folder = tmp_path / "dev" / "rows"  # names outside of the given folder do not count
    for place, rows in {"train": ROWS[:2], "test": ROWS[2:]}.items():
        (folder / place).mkdir(parents=True)
        write_lines(folder / place / "0000.jsonl", rows)
    train, held_out = read_path(f"{folder}{pattern}")
    assert values(train) == ROWS[:2]
    assert held_out is not None
    assert values(held_out) == ROWS[2:]


def test_validation_files_are_held_out_and_test_files_beside_them_left_out(tmp_path):
    for name, row in zip(("test", "train", "validation"), ROWS, strict=True):
        write_lines(tmp_path / f"{name}.jsonl", [row])
    train, held_out = read_path(str(tmp_path))
    assert held_out is not None
    assert (values(train), values(held_out)) == ([ROWS[1]], [ROWS[2]])


def test_folder_of_several_kinds_of_files_is_refused_with_a_remedy(tmp_path):
    write_lines(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "notes.txt").write_text("no rows")
    with pytest.raises(ConfigError, match=r"several kinds \(\.jsonl, \.txt\); name one kind, as in data\.path='.*/\*"):
        read_path(str(tmp_path))
    assert values(read_path(f"{tmp_path}/*.jsonl")[0]) == ROWS


def test_files_that_identify_a_folder_are_those_that_are_read(tmp_path):
    for name in (".git/x.jsonl", "README.md", "model.bin", "dataset_info.json", "b/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_lines(tmp_path / name, ROWS)
    assert data_files(str(tmp_path)) == data_files(f"{tmp_path}/**/*.jsonl") == [tmp_path / "b/a.jsonl"]
    assert values(read_path(str(tmp_path))[0]) == ROWS
    (tmp_path / "state.json").write_text("{}")  # a saved data set: its arrow files count
    assert len(data_files(str(tmp_path))) == 6


def test_folder_or_glob_without_rows_is_refused(tmp_path):
    for path in (tmp_path, f"{tmp_path}/*.jsonl"):
        with pytest.raises(ConfigError, match=r"data\.path: no readable file in .*; expected \.jsonl, "):
            read_path(str(path))


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with a `Dataset` and a `DatasetDict` of two splits, written by `save_to_disk`."""
    import datasets  # noqa: PLC0415 - slow import, only for these tests

    folder = tmp_path_factory.mktemp("saved")
    train, test = datasets.Dataset.from_list(ROWS[:2]), datasets.Dataset.from_list(ROWS[2:])
    train.save_to_disk(folder / "one")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(folder / "both")
    datasets.DatasetDict({"test": train, "train": train, "validation": test}).save_to_disk(folder / "three")
    return folder


def test_saved_data_sets_are_read(saved):
    train, held_out = read_path(str(saved / "one"))
    assert (values(train), held_out) == (ROWS[:2], None)
    train, held_out = read_path(str(saved / "both"))
    assert held_out is not None
    assert (values(train), values(held_out)) == (ROWS[:2], ROWS[2:])
    assert train.where(1).endswith("both/train, row 1")


def test_held_out_split_of_a_saved_data_set_is_its_validation_split(saved):
    train, held_out = read_path(str(saved / "three"))
    assert held_out is not None
    assert (values(train), values(held_out)) == (ROWS[:2], ROWS[2:])


def test_dictionary_of_splits_given_from_python_is_refused_with_their_names(saved):
    import datasets  # noqa: PLC0415 - slow import, only for these tests

    splits = datasets.load_from_disk(str(saved / "both"))
    assert values(Rows(rows=splits["train"]).load(eval_rows=1).train) == ROWS[:2]
    with pytest.raises(ConfigError, match="data: expected one split, got a DatasetDict; choose one of train, test"):
        Rows(rows=splits).load(eval_rows=1)


def test_data_frame_given_from_python_is_refused_with_the_call_for_its_rows():
    class Frame:
        """Fake of a DataFrame: iterates over the names of its columns."""

        def __iter__(self):
            return iter(["prompt"])

        def to_dict(self, orient):
            return [{"prompt": "a"}]

    with pytest.raises(ConfigError, match=r'got a DataFrame; write data=frame\.to_dict\("records"\)$'):
        Rows(rows=Frame()).load(eval_rows=1)


def test_damaged_data_set_is_a_one_line_error(saved, tmp_path):
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ConfigError, match="not a data set written by save_to_disk") as caught:
        read_path(str(tmp_path))
    assert "\n" not in str(caught.value)
