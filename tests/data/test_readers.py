"""Readers of file formats, and errors for bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from postrain.data.readers import read_file
from postrain.errors import ConfigError

ROWS = [
    {"prompt": "a\nb", "completion": "ü", "label": True},
    {"prompt": 'c"', "completion": "d\u2028e", "label": False},
]


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def jsonl(path: Path) -> str:
    return write(path / "x.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n")


def js(path: Path) -> str:
    return write(path / "x.json", "\ufeff" + json.dumps(ROWS))


def csv(path: Path) -> str:
    return write(path / "x.csv", 'prompt,completion,label\n"a\nb",ü,True\n"c""","d\u2028e",False\n')


def parquet(path: Path) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path / "x.parquet")
    return str(path / "x.parquet")


@pytest.mark.parametrize(("make", "numbers"), [(jsonl, [1, 2]), (js, [0, 1]), (csv, [2, 4]), (parquet, [0, 1])])
def test_every_format_gives_the_same_rows_and_locations(make, numbers, tmp_path):
    table = read_file(make(tmp_path))
    # CSV does not distinguish booleans from text.
    rows = [{**row, "label": str(row["label"])} for row in ROWS] if make is csv else ROWS
    assert [dict(row.values) for row in table.rows] == rows
    assert [row.number for row in table.rows] == numbers


def test_text_is_split_into_documents_at_blank_lines(tmp_path):
    paragraphs = [f"{number} " + ("word " * 150).strip() for number in range(6)]
    table = read_file(write(tmp_path / "x.txt", "\n\n" + "\n\n".join(paragraphs) + "\n"))
    documents = [row.values["text"] for row in table.rows]
    # 751 characters per paragraph: with the third a document exceeds 2000.
    assert documents == ["\n\n".join(paragraphs[:3]), "\n\n".join(paragraphs[3:])]
    assert [row.number for row in table.rows] == [3, 9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": \n', r"line 2: not valid JSON \(.* at column"),
        ("x.jsonl", '{"text": "a"}\n["b"]\n', "line 2: expected an object"),
        ("x.jsonl", b'{"text": "a"}\n{"text": "\xe9t\xe9"}\n', "line 2: not UTF-8 text; save the file as UTF-8"),
        ("x.csv", b"text\na\n\xe9\n", "line 3: not UTF-8"),
        ("x.csv", "text,id\na,1\nb\n", "line 3: expected 2 cells"),
        ("x.csv", "text,id\na,1,2\n", "line 2: expected 2 cells"),
        ("x.csv", 'text\n"a', "not valid CSV"),
        ("x.jsonl", "", "is empty; expected at least one row"),
        ("x.jsonl", "\n \n", "is empty"),
        ("x.json", "", "is empty"),
        ("x.json", "[]", "is empty"),
        ("x.csv", "text\n", "is empty"),
        ("x.csv", "", "is empty"),
        ("x.txt", "\n\n", "is empty"),
        ("x.json", '{\n"text": "a"\n}\n{\n"text": "b"\n}', "expected a list of objects, or one object per line"),
        ("x.json", "3", "expected a list of objects, or one object per line"),
        ("x.json", '{\n"text": "a",\n}', "line 3: not valid JSON"),
        (
            "x.json",
            '{"train": [{"a": 1}], "test": [{"a": 1}]}',
            r"several lists of objects \(train, test\)",
        ),
        ("x.json", '{"text": "a"}\n{"text": \n', "line 2: not valid JSON"),
        ("x.arrow", "text", "cannot be read as Arrow"),
        ("x.json", '[{"text": "a"}, 3]', "item 1: expected an object"),
        ("x.parquet", "text", "cannot be read as Parquet"),
        ("x.docx", "text", r"cannot read \.docx; expected one of \.jsonl, "),
    ],
)
def test_bad_file_is_a_one_line_error_with_the_location(name, content, message, tmp_path):
    with pytest.raises(ConfigError, match=message) as caught:
        read_file(write(tmp_path / name, content))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.path: there is no file .*gone\.jsonl"):
        read_file(str(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_json_and_json_lines_are_distinguished_by_content(suffix, tmp_path):
    path = tmp_path / f"x.{suffix}"
    path.write_text("\ufeff" + "".join(json.dumps(row) + "\n" for row in ROWS))
    lines = read_file(str(path))
    path.write_text(json.dumps(ROWS, indent=1))
    items = read_file(str(path))
    assert [row.values for row in lines.rows] == [row.values for row in items.rows] == ROWS
    assert (lines.where(1), items.where(0)) == (f"{path}, line 1", f"{path}, item 0")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_rows_in_the_only_list_of_an_object_are_read(suffix, indent, tmp_path):
    path = write(tmp_path / f"x.{suffix}", json.dumps({"version": 1, "data": ROWS}, indent=indent))
    table = read_file(path)
    assert [(row.number, row.values) for row in table.rows] == [*enumerate(ROWS)]
    assert table.where(1) == f"{path}, item 1"


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a"},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"dialog": [{"from": "human", "value": "a"}]},  # may be mapped with data.columns
        {"prompt": "a", "completion": "b", "tools": [{"name": "f"}]},
        {"data": ["a"]},
        {"data": []},
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_an_object_without_rows_is_one_row(row, indent, tmp_path):
    table = read_file(write(tmp_path / "x.json", json.dumps(row, indent=indent)))
    assert [found.values for found in table.rows] == [row]


@pytest.mark.parametrize("open_writer", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_arrow_files_are_read(open_writer, tmp_path):
    rows = pyarrow.Table.from_pylist(ROWS)
    with open_writer(tmp_path / "x.arrow", rows.schema) as file:
        file.write_table(rows)
    assert [row.values for row in read_file(str(tmp_path / "x.arrow")).rows] == ROWS
