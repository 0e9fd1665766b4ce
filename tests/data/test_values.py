"""Values in files that training cannot use: refused, replaced or converted to text."""

from __future__ import annotations

import io
import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from postrain.data.documents import DOCUMENT_CHARACTERS
from postrain.data.formats import parse
from postrain.data.readers import make_table, read_file
from postrain.errors import ConfigError


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("9" * 5000, "'n' holds a number of 5000 digits; at most 1000 can be read"),
        ("-" + "9" * 5000, "'n' holds a number of 5000 digits"),
        ('{"m": [' + "9" * 5000 + "]}", "'n' holds a number of 5000 digits"),
        ("[" * 150 + "]" * 150, "'n' is nested deeper than 100 levels"),
        # The row itself is one level, and 19 characters precede the value: 19 + 100 and 19 + 99 * 5 + 1.
        ("[" * 20000 + "]" * 20000, "nested deeper than 100 levels at column 119"),
        ('{"a":' * 20000 + "1" + "}" * 20000, "nested deeper than 100 levels at column 515"),
        ('{"a": 1, "b": 2, "a": 3}', "'n' holds an object with the key 'a' twice"),
        ('1, "text": "b"', "the column 'text' occurs twice; remove one of them"),
    ],
)
def test_unreadable_value_error_names_line_and_column(value, message, tmp_path):
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n{"text": "a", "n": ' + value + "}\n")
    with pytest.raises(ConfigError, match=rf"x\.jsonl, line 2: .*{message}") as caught:
        read_file(path)
    assert "\n" not in str(caught.value)


def test_lone_surrogates_and_nul_are_replaced_and_counted(tmp_path):
    lines = r'{"text": "a \ud83d"}', r'{"text": "b", "more": [{"x": "\u0000"}]}', r'{"text": "\ud83d\ude00 c"}'
    table = read_file(write(tmp_path / "x.jsonl", "\n".join(lines)))
    assert [dict(row.values) for row in table.rows] == [
        {"text": "a \ufffd"},
        {"text": "b", "more": [{"x": "\ufffd"}]},
        {"text": "😀 c"},
    ]
    what = "unpaired surrogate or NUL replaced by U+FFFD in"
    assert table.repaired == {f"{what} 'text'": 1, f"{what} 'more'": 1}
    cells = read_file(write(tmp_path / "x.csv", "text\na\0\n"))
    assert (cells.rows[0].values["text"], cells.repaired) == ("a\ufffd", {f"{what} 'text'": 1})


def parquet(names: list[str], columns: list[pyarrow.Array]) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, names=names), sink)
    return sink.getvalue()


def test_duplicate_column_error_names_both_positions(tmp_path):
    text = pyarrow.array(["a"])
    for name, content in (("x.csv", "text,id,id\na,1,2\n"), ("x.parquet", parquet(["text", "id", "id"], [text] * 3))):
        with pytest.raises(ConfigError, match=rf"{name}: the columns 2 and 3 are both named 'id'; rename one"):
            read_file(write(tmp_path / name, content))


def test_non_utf8_parquet_text_is_a_one_line_error(tmp_path):
    ends = pyarrow.py_buffer(b"\x00\x00\x00\x00\x01\x00\x00\x00")
    broken = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, ends, pyarrow.py_buffer(b"\xff")])
    with pytest.raises(ConfigError, match=r"x\.parquet: cannot be read as Parquet \('utf-8' codec"):
        read_file(write(tmp_path / "x.parquet", parquet(["text"], [broken])))


def test_long_csv_cell_is_read(tmp_path):
    table = read_file(write(tmp_path / "x.csv", f"text\nshort\n{'word ' * 40000}\n"))
    assert [len(row.values["text"]) for row in table.rows] == [5, 200000]


def test_csv_errors_name_the_line_they_are_in(tmp_path):
    with pytest.raises(ConfigError, match=r"line 4: not valid CSV"):
        read_file(write(tmp_path / "x.csv", 'text,id\na,1\n\nb,"2"x\n'))


@pytest.mark.parametrize(
    "text",
    ["line of words here\n" * 900, ("word " * 3000).strip(), "x" * 13000, "line\n\n" + "word " * 3000 + "\n\nlast"],
)
def test_text_without_blank_lines_is_split_at_lines_and_words(text, tmp_path):
    table = read_file(write(tmp_path / "x.txt", text))
    documents = [row.values["text"] for row in table.rows]
    assert len(documents) >= 3
    assert all(len(document) <= 2 * DOCUMENT_CHARACTERS + len(document.split("\n")) for document in documents)
    assert "".join("".join(documents).split()) == "".join(text.split())
    if " " in text:
        assert " ".join(documents).split() == text.split()


def test_parquet_values_without_a_json_type_become_text(tmp_path):
    row = {"text": "a", "day": date(2026, 1, 2), "price": Decimal("1.50"), "pairs": [{"x": Decimal(2)}], "left": None}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "x.parquet")
    (found,) = read_file(str(tmp_path / "x.parquet")).rows
    assert json.loads(json.dumps(found.values)) == {
        "text": "a",
        "day": "2026-01-02",
        "price": "1.50",
        "pairs": [{"x": "2"}],
        "left": None,
    }


def test_bytes_in_parquet_are_text_and_other_bytes_only_allowed_in_unused_columns(tmp_path):
    column, image = pyarrow.array([b"Hello", "Hi é".encode()]), pyarrow.array([b"\x89PNG", b"\xff"])
    file = write(tmp_path / "x.parquet", parquet(["prompt", "completion", "thumbnail"], [column, column, image]))
    found = parse(read_file(file), {})
    assert [record.content() for record in found.records] == [("Hello", "Hello"), ("Hi é", "Hi é")]
    assert found.unused == {"thumbnail": 2}
    with pytest.raises(ConfigError, match=r"x\.parquet, row 0: completion holds bytes that are not UTF-8"):
        parse(read_file(file), {"completion": "thumbnail"})


@pytest.mark.parametrize("name", [1, 0, None])
def test_column_name_that_is_not_text_is_refused(name):
    with pytest.raises(ConfigError, match=f"data, row 0: column names have to be text, got {name}; rename the column"):
        make_table("data", "row", iter([(0, {"a": 1, name: "x"})]))


def test_keys_of_objects_that_json_cannot_hold_become_text():
    (row,) = make_table("data", "row", iter([(0, {"a": {1: 2, (1, 2): 3, np.int64(4): 5}})])).rows
    assert repr(row.values) == repr({"a": {1: 2, "(1, 2)": 3, "4": 5}})


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.int64(5), 5),
        (np.float64(1.5), 1.5),
        (np.str_("a"), "a"),
        (np.array([1, 2]), [1, 2]),
        (np.array([{"role": "user", "ids": np.array([1])}], dtype=object), [{"role": "user", "ids": [1]}]),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        (torch.tensor([1.0]), [1.0]),
        (type("NAType", (), {})(), None),  # pandas.NA
    ],
)
def test_values_of_numpy_torch_and_pandas_become_plain_values(value, plain):
    (row,) = make_table("data", "row", iter([(0, {"nums": value})])).rows
    # repr, because np.float64(1.5) equals 1.5.
    assert repr(row.values) == repr({"nums": plain})
