"""Lists as JSON text in a cell."""

from __future__ import annotations

import json

import pytest

from postrain.data.formats import parse
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.steps import Steps
from postrain.data.records import Record
from postrain.data.values import Cell
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


@pytest.mark.parametrize(
    "answer",
    [
        '[{"name": "a"}]',
        '{"from": "Berlin", "to": "Paris"}',
        '{"role": "admin", "content": "b"}',
        '[{"role": "user", "content": "a"}, {"role": "admin", "content": "b"}]',
        '{"value": 42}',
        '{"role": "user", "age": 3}',
        '{"from": "user", "value": 42}',
        '{"content": "b", "content": "c"}',
        "{'value': 42}",
        "{'from': 'Berlin', 'value': 3}",
        '{"role": "user", "content": ',
        "[]",
        "{}",
    ],
)
@pytest.mark.parametrize("as_cell", [str, Cell])
def test_text_is_messages_only_with_known_roles_and_contents(answer: str, as_cell: type[str]) -> None:
    row = {"prompt": as_cell(json.dumps([USER])), "completion": as_cell(answer)}
    assert parse(table([row]), {}).records == (Demonstration(row=1, messages=chat("a", answer)),)


@pytest.mark.parametrize("value", ['{"role": "narrator", "content": "a"}', '[{"id": 1}]', "{", "{'value': 42}"])
def test_text_in_a_column_of_messages_has_to_be_a_list_of_messages(value: str) -> None:
    with pytest.raises(ConfigError, match=r"line 1: messages h(as|olds) .*(known are|without role|not JSON)"):
        parse(table([{"messages": value}]), {})


def test_json_calls_of_an_answer_are_messages() -> None:
    calling = [{"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}]
    (record,) = parse(table([{"prompt": "a", "completion": json.dumps(calling), "tools": [{"name": "f"}]}]), {}).records
    assert isinstance(record, Demonstration)
    assert record.messages[-1].tool_calls == ({"name": "f", "arguments": {}},)


@pytest.mark.parametrize("column", ["messages", "prompt", "chosen"])
def test_messages_as_python_literals_are_refused(column: str) -> None:
    row = {"completion": "b", "rejected": "b", column: str([USER])}
    with pytest.raises(ConfigError, match=rf"line 1: {column} holds a list as text that is not JSON, .* json\.dumps"):
        parse(table([row]), {})
