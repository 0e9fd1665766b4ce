"""Delimiters and quotes of CSV and TSV files."""

from __future__ import annotations

import pytest

from postrain.data.delimited import SAMPLE_CHARACTERS
from postrain.data.readers import read_file
from postrain.errors import ConfigError


def rows(path, content: str) -> list[dict]:
    path.write_text(content, newline="")
    return [dict(row.values) for row in read_file(str(path)).rows]


@pytest.mark.parametrize(("name", "sign"), [("x.csv", ";"), ("x.tsv", "\t"), ("x.csv", "\t")])
def test_other_delimiters_are_taken_from_the_header(name, sign, tmp_path):
    assert rows(tmp_path / name, f"text{sign}id\na{sign}1,5\n") == [{"text": "a", "id": "1,5"}]


@pytest.mark.parametrize(
    ("name", "header", "cells"),
    [
        ("x.tsv", "prompt\tcompletion, best", "a\tb"),
        ("x.tsv", "prompt\tcompletion, best", "a, c\tb"),
        ("x.csv", "prompt\tcompletion, best", "a\tb"),
        ("x.csv", "prompt;completion (a, b)", "a;b"),
        ("x.csv", "prompt;completion (a, b)", "a, c;b"),  # the comma splits the header and the row in two as well
        ("x.csv", "prompt,completion;best", "a,b"),
        ("x.csv", "prompt,completion;best", "a;c;d,b"),
    ],
)
def test_delimiter_splits_the_rows_like_the_header(name, header, cells, tmp_path):
    (row,) = rows(tmp_path / name, f"{header}\n{cells}\n")
    assert len(row) == 2
    assert list(row.values())[1] == "b"


def test_delimiter_of_a_long_file_is_that_of_its_beginning(tmp_path):
    lines = "a, c;b\n" * (SAMPLE_CHARACTERS // 6) + "a, c, d;b\n"
    assert rows(tmp_path / "x.csv", f"prompt;completion (a, b)\n{lines}")[-1]["prompt"] == "a, c, d"


def test_column_of_a_tsv_file_may_have_commas(tmp_path):
    assert rows(tmp_path / "x.tsv", "text\na, b\n") == [{"text": "a, b"}]


@pytest.mark.parametrize("name", ["x.tsv", "x.csv"])
def test_quotes_in_tab_separated_text_are_letters_unless_they_fit(name, tmp_path):
    letters = 'prompt\tcompletion\n"Hello" she said\t"b\nc\td"\n'
    assert rows(tmp_path / name, letters) == [
        {"prompt": '"Hello" she said', "completion": '"b'},
        {"prompt": "c", "completion": 'd"'},
    ]
    quoted = 'prompt\tcompletion\n"a\tb"\t"say ""c""\n"\n'
    assert rows(tmp_path / name, quoted) == [{"prompt": "a\tb", "completion": 'say "c"\n'}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a\tb\n"x" y\t1\nz\n', "line 3: expected 2 cells"),  # the quotes are letters
        ('a\tb\n"x\ny"\t1\nz\n', "line 4: expected 2 cells"),  # the quotes enclose a cell
    ],
)
def test_missing_cell_beside_quotes_is_found_in_its_line(content, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"x\.tsv, {message}"):
        rows(tmp_path / "x.tsv", content)
