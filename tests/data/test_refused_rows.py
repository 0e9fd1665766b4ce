"""Rows that the chat template refuses, and the file and line in errors of rows."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.data.module import DataModule
from postrain.errors import ConfigError
from tests.data.helpers import byte_tokenizer, write_lines

PICKY = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{{ tools }}"
    "{% for m in messages %}{% if (m.role in ('user', 'tool')) != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('no alternation') }}{% endif %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% for call in m.tool_calls or [] %}{% if call.id | length != 9 %}{{ raise_exception('id of 9') }}{% endif %}"
    "{{ call.function | tojson }}{% endfor %}{{ '<|stop|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A template with the conditions of Gemma and Mistral."""


def turns(*pairs: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in pairs]


def prepared(rows: list[dict] | None, kind: str, **settings: Any) -> DataModule:
    data = DataModule(rows, **settings)
    tokenizer = byte_tokenizer(template=PICKY)
    data.prepare(kind=kind, tokenizer=tokenizer, context=99, batch_size=2, updates=1, seed=0)
    return data


GOOD = [{"messages": turns(("user", f"q{n}"), ("assistant", "a"))} for n in range(9)]
SYSTEM = {"messages": turns(("system", "s"), ("user", "x"), ("assistant", "a"))}
GREETING = {"messages": turns(("assistant", "Hi"), ("user", "y"), ("assistant", "a"))}


@pytest.mark.parametrize("kind", ["Demonstration", "Prompt"])
def test_rows_refused_by_the_template_are_dropped_and_counted_by_its_message(kind):
    data = prepared([*GOOD, SYSTEM, GREETING, SYSTEM], kind)
    assert data.audit.dropped == {
        "refused by the chat template: no system": 2,
        "refused by the chat template: no alternation": 1,
    }
    # 9 rows are left; a tenth of them, rounded up, is held out
    assert (len(data.records.train), len(data.train), len(data.eval)) == (8, 8, 1)


def test_pairs_and_labelled_answers_refused_by_the_template_are_dropped():
    pairs = [{"prompt": f"p{n}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(9)]
    rows = [*pairs, {**pairs[0], "system": "s"}]
    assert prepared(rows, "Preference").audit.dropped == {"refused by the chat template: no system": 1}
    assert prepared(rows, "UnpairedPreference").audit.dropped == {"refused by the chat template: no system": 2}


def test_calls_are_rendered_one_by_one_since_a_template_may_refuse_their_contents():
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]

    def row(identity: str) -> dict:
        call = {"id": identity, "type": "function", "function": {"name": "f", "arguments": {}}}
        return {"messages": [*turns(("user", f"q {identity}")), {"role": "assistant", "tool_calls": [call]}]}

    rows = [{**row(f"{n:09}"), "tools": tools} for n in range(9)] + [{**row("short"), "tools": tools}]
    assert prepared(rows, "Demonstration").audit.dropped == {"refused by the chat template: id of 9": 1}


def test_template_that_refuses_most_rows_is_an_error_with_the_first_and_a_remedy():
    message = (
        r"data, row 2: the chat template refuses the conversation: no system; so it does with 2 of 3 rows; use another "
        r"data\.template, such as alpaca, or change the rows"
    )
    with pytest.raises(ConfigError, match=message):
        prepared([GOOD[0], SYSTEM, SYSTEM], "Demonstration")
    assert prepared([*GOOD[:2], SYSTEM], "Demonstration", template="alpaca").audit.dropped == {}


def test_errors_of_encoding_name_the_file_and_its_line(tmp_path):
    a, b = (write_lines(tmp_path / f"{name}.jsonl", [{"prompt": f"{name}{n}"} for n in range(4)]) for name in "ab")
    write_lines(b, [{"prompt": ""}, *({"prompt": f"b{n}"} for n in range(4))])
    for source in ({"path": str(tmp_path)}, {"mix": {str(a): 1.0, str(b): 1.0}}):
        with pytest.raises(ConfigError, match=rf"^{b}, line 1: the prompt is empty"):
            prepared(None, "Prompt", template="plain", **source)
