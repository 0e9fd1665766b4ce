"""Lists as JSON text in a cell."""

from __future__ import annotations

import json

import pytest

from postrain.data.formats import parse
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.steps import Steps
from postrain.data.readers import Cell
from postrain.data.records import Record
from postrain.errors import ConfigError
from tests.data.helpers import chat, table

USER, CHOSEN, REJECTED = (
    {"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "b"), ("gpt", "c"))
)
PAIR = Preference(row=1, prompt=chat("a"), chosen="b", rejected="c")


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"messages": [USER, CHOSEN]}, Demonstration(row=1, messages=chat("a", "b"))),
        ({"prompt": [USER]}, Prompt(row=1, prompt=chat("a"))),
        ({"chosen": [USER, CHOSEN], "rejected": [USER, REJECTED]}, PAIR),
        ({"prompt": [USER], "chosen": CHOSEN, "rejected": REJECTED}, PAIR),
        (
            {"prompt": "c", "completion": "d", "history": [["a", "b"]]},
            Demonstration(row=1, messages=chat("a", "b", "c", "d")),
        ),
        (
            {"prompt": "a", "steps": ["b"], "labels": [True]},
            Steps(row=1, prompt=chat("a"), steps=("b",), labels=(True,)),
        ),
    ],
)
def test_json_lists_in_cells_are_read(row: dict, record: Record) -> None:
    cells = {name: Cell(json.dumps(value) if isinstance(value, list | dict) else value) for name, value in row.items()}
    assert parse(table([cells]), {}).records == (record,)


def test_json_messages_in_a_string_are_parsed_and_other_json_stays_text() -> None:
    row = {"prompt": json.dumps([USER]), "completion": '[{"name": "a"}]'}
    assert parse(table([row]), {}).records == (Demonstration(row=1, messages=chat("a", '[{"name": "a"}]')),)


@pytest.mark.parametrize("column", ["messages", "prompt", "chosen"])
def test_messages_as_python_literals_are_refused(column: str) -> None:
    row = {"completion": "b", "rejected": "b", column: str([USER])}
    with pytest.raises(ConfigError, match=rf"line 1: {column} holds a list as text that is not JSON, .* json\.dumps"):
        parse(table([row]), {})
