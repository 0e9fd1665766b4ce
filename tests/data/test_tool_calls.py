"""Rows with tools: the layouts in use, what is refused, dropped or counted, and which tokens are in the loss."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from postrain.data.chat import Template
from postrain.data.conversation import DECLARATION, Message, tools_of
from postrain.data.encode import Encoder
from postrain.data.formats import parse
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.steps import StepLayout
from postrain.data.readers import read_file
from postrain.data.records import Record, convert, encode
from postrain.data.rendering import as_mapping, from_mapping
from postrain.errors import ConfigError
from tests.data.helpers import UNMARKED, byte_tokenizer, decoded, table, write_lines

SCHEMA = {
    "name": "add",
    "description": "Sum",
    "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]},
}
TOOL = {"type": "function", "function": SCHEMA}
DECLARED = Message(DECLARATION, json.dumps([TOOL]))
CALL = {"name": "add", "arguments": {"x": 1}}
OPENAI = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x": 1}'}}
USER = {"role": "user", "content": "a"}
CALLING = Message("assistant", "", tool_calls=(CALL,))
RESULT = Message("tool", "2")
LAST = Message("assistant", "b")

ANSWER = {"role": "assistant", "content": "b"}

MARKED_TOOLS = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.reasoning_content or '' }}{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}{{ '<|stop|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|stop|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A template that renders tools, with a generation mark around each answer."""
UNMARKED_TOOLS = MARKED_TOOLS.replace("{% generation %}", "").replace("{% endgeneration %}", "")


def parse_one(row: dict[str, Any]) -> Record:
    (record,) = parse(table([row]), {}).records
    return record


def share_gpt(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": role, "value": value} for role, value in turns]


@pytest.mark.parametrize(
    "tools", [[TOOL], [SCHEMA], TOOL, json.dumps([TOOL]), json.dumps([SCHEMA]), [json.dumps(TOOL)]]
)
@pytest.mark.parametrize("call", [OPENAI, {**OPENAI, "function": CALL}, {**CALL, "id": "c1"}])
def test_openai_rows_with_tools_as_objects_or_text(tools, call):
    answer = {"role": "assistant", "tool_calls": [call]}
    row = {
        "messages": [USER, answer, {"role": "tool", "tool_call_id": "c1", "content": "2"}, asdict(LAST)],
        "tools": tools,
    }
    row["messages"][-1] = {"role": "assistant", "content": "b"}
    called = Message("assistant", "", tool_calls=({**CALL, "id": "c1"},))
    assert parse_one(row) == Demonstration(
        row=1, messages=(DECLARED, Message("user", "a"), called, Message("tool", "2", tool_call_id="c1"), LAST)
    )


@pytest.mark.parametrize(
    "row",
    [
        {
            "conversations": share_gpt(
                ("human", "a"), ("function_call", json.dumps(CALL)), ("observation", "2"), ("gpt", "b")
            ),
            "tools": json.dumps([SCHEMA]),
        },
        {
            "conversations": share_gpt(
                ("system", "You call functions. <tools>[...]</tools>"),
                ("human", "a"),
                ("gpt", "<tool_call>\n{'arguments': {'x': 1}, 'name': 'add'}\n</tool_call>"),
                ("tool", "<tool_response>\n2\n</tool_response>"),
                ("gpt", "b"),
            ),
            "tools": json.dumps([SCHEMA]),
        },
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"x": 1}'}},
                {"role": "function", "content": 2},
                {"role": "assistant", "content": "b"},
            ],
            "functions": [SCHEMA],
        },
        {
            "prompt": [USER],
            "completion": [
                {"role": "assistant", "tool_calls": [{"function": CALL}]},
                {"role": "tool", "content": "2"},
                {"role": "assistant", "content": "b"},
            ],
            "tools": [TOOL],
        },
    ],
    ids=["sharegpt", "hermes", "functions", "trl"],
)
def test_other_layouts_give_the_same_conversation(row):
    assert parse_one(row) == Demonstration(row=1, messages=(DECLARED, Message("user", "a"), CALLING, RESULT, LAST))


@pytest.mark.parametrize(("suffix", "kept"), [("jsonl", {"y": None}), ("parquet", {})])
def test_nulls_of_calls_and_schemas_stay_except_those_that_fill_structs(suffix, kept, tmp_path):
    answer = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {**CALL, "arguments": {"x": 1, "y": None}}}],
    }
    schema = {**SCHEMA, "strict": None, "parameters": {"type": "object", "properties": {"y": {"x": 1, "y": None}}}}
    file = tmp_path / f"x.{suffix}"
    rows = [{"messages": [{**USER, "tool_calls": None}, answer], "tools": [{"type": "function", "function": schema}]}]
    if suffix == "jsonl":
        write_lines(file, rows)
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    (record,) = parse(read_file(str(file)), {}).records
    assert isinstance(record, Demonstration)
    assert record.messages[-1].tool_calls == ({"name": "add", "arguments": {"x": 1, **kept}},)
    (tool,) = tools_of(record.messages)
    assert tool["function"] == {**SCHEMA, "parameters": {"type": "object", "properties": {"y": {"x": 1, **kept}}}}


def test_xlam_row_has_its_calls_as_answer_and_its_parameters_become_a_schema():
    tools = [
        {
            "name": "add",
            "description": "Sum",
            "parameters": {"x": {"type": "int"}, "y": {"type": "List[str], optional"}},
        }
    ]
    record = parse_one({"query": "a", "tools": json.dumps(tools), "answers": json.dumps([CALL])})
    assert isinstance(record, Demonstration)
    assert record.messages[1:] == (Message("user", "a"), CALLING)
    assert tools_of(record.messages)[0]["function"]["parameters"] == {
        "type": "object",
        "properties": {"x": {"type": "integer"}, "y": {"type": "array"}},
        "required": ["x"],
    }


def test_expected_calls_beside_a_completion_stay_for_rewards():
    record = parse_one({"prompt": "a", "completion": "b", "tools": [TOOL], "tool_calls": [CALL]})
    assert record == Demonstration(
        row=1, messages=(DECLARED, Message("user", "a"), LAST), columns={"tool_calls": [CALL]}
    )


@pytest.mark.parametrize(
    "turn", [LAST, Message("assistant", "b", tool_calls=({**CALL, "id": "c1"},), reasoning="hm"), Message("tool", "2")]
)
def test_message_as_a_mapping_and_back(turn):
    assert from_mapping(as_mapping(turn)) == turn


def test_prompt_of_a_call_has_tools_and_the_expected_call_as_reward_columns():
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [OPENAI]}], "tools": [TOOL]}
    (prompt,) = convert([parse_one(row)], "Prompt", source="rows").records
    assert isinstance(prompt, Prompt)
    assert prompt.prompt == (DECLARED, Message("user", "a"))
    assert prompt.columns == {"tools": [TOOL], "tool_calls": [{**CALL, "id": "c1"}]}
    assert prompt.text == "a"
    asked = parse_one({"messages": [USER], "tools": [TOOL]})
    assert asked == Prompt(row=1, prompt=prompt.prompt, columns={"tools": [TOOL]})


def test_preference_of_a_call_over_text():
    pair = parse_one(
        {
            "input": {"messages": [USER], "tools": [TOOL]},
            "preferred_output": [{"role": "assistant", "tool_calls": [{"function": CALL}]}],
            "non_preferred_output": [{"role": "assistant", "content": "b"}],
        }
    )
    assert pair == Preference(row=1, prompt=(DECLARED, Message("user", "a")), chosen=CALLING, rejected="b")
    template = Template(byte_tokenizer(template=UNMARKED), mode="tools")
    encoder = Encoder(template, "completion", 9999, 9999, pack=False, layout=StepLayout())
    (item,) = encode([pair], encoder)
    chosen, rejected = (decoded(template, row.ids[row.supervised]) for row in item.token_rows())
    assert chosen == '<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call><|stop|>'
    assert rejected == "b<|stop|>"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"tool_calls": [{"function": {"name": "add", "arguments": "{x: 1"}}]},
            "expected JSON in the arguments of add in .*, got",
        ),
        ({"tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]}, "add in .* have to be a JSON object"),
        ({"tool_calls": "add(x=1)"}, r"expected JSON in messages.tool_calls, got 'add\(x=1\)'"),
        ({"tool_calls": [{"function": {}}]}, "calls with the name of a function"),
        ({"tool_calls": [OPENAI], "function_call": CALL}, "tool_calls and function_call differ"),
        ({"content": f"<tool_call>{'[' * 100000}</tool_call>"}, r"expected JSON in <tool_call>, got '\[\["),
        ({"content": "<tool_call>{[]: 1}</tool_call>"}, "expected JSON in <tool_call>, got"),
    ],
)
def test_malformed_calls_are_refused_with_the_line(answer, message):
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 1: .*{message}"):
        parse_one({"messages": [USER, {"role": "assistant", **answer}], "tools": [TOOL]})


@pytest.mark.parametrize(
    ("call", "warning"),
    [
        ({"name": "subtract", "arguments": {}}, "call of an undeclared function"),
        ({"name": "add", "arguments": {}}, "call with undeclared arguments or without required ones"),
        ({"name": "add", "arguments": {"x": 1, "z": 1}}, "call with undeclared arguments or without required ones"),
    ],
)
def test_calls_that_the_tools_do_not_allow_are_counted(call, warning):
    row = {"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": [TOOL]}
    assert parse(table([row, row]), {}).warned == {warning: 2}


def test_result_without_a_call_drops_the_row():
    turns = [USER, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "b"}]
    found = parse(table([{"messages": turns, "tools": [TOOL]}]), {})
    assert found.dropped == {"tool message without a call before it": 1}


@pytest.mark.parametrize(
    "source",
    [
        MARKED_TOOLS,
        MARKED_TOOLS.replace("generation %}", "if 1 %}", 1).replace("{% endgeneration %}", "{% endif %}"),
        None,
    ],
)
def test_calls_and_answers_are_in_the_loss_and_results_are_not(source):
    tokenizer = byte_tokenizer(template=source or UNMARKED)
    template = Template(tokenizer, mode="chat" if source else "tools")
    turns = (DECLARED, Message("user", "a"), CALLING, RESULT, LAST)
    ids, answers, _ = template.encode(turns)
    call = '{"name": "add", "arguments": {"x": 1}}'
    tagged = call if source else f"<tool_call>\n{call}\n</tool_call>"
    assert decoded(template, ids[answers]) == f"{tagged}<|stop|>b<|stop|>"
    zero = Message("assistant", "", in_loss=False, tool_calls=(CALL,))
    _, _, weightless = template.encode((*turns[:2], zero, *turns[3:]))
    assert decoded(template, ids[weightless]) == f"{tagged}<|stop|>"


def test_exported_template_renders_tools_as_training_does():
    tokenizer = byte_tokenizer(template=UNMARKED)
    template = Template(tokenizer, mode="tools")
    turns = (DECLARED, Message("system", "s"), Message("user", "a"), CALLING, RESULT, Message("tool", "3"))
    openai = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [OPENAI]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
        {"role": "tool", "content": "3", "tool_call_id": "c1"},
    ]
    text = tokenizer.apply_chat_template(openai, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert isinstance(text, str)
    assert text == decoded(template, template.encode_prompt(turns))
    assert text.count("<tools>") == 1
    assert text.count("<|user|>") == 2, "results of one turn share a user message"
    # A model that was exported with this template is trained again with it, not with two of them.
    assert Template(tokenizer, mode="tools").source() == template.source()
    assert Template(tokenizer, mode="auto").source() == template.source()


def test_reasoning_is_rendered_and_learned():
    thinking = Message("assistant", "b", reasoning="hm", tool_calls=(CALL,))
    template = Template(byte_tokenizer(template=UNMARKED), mode="tools")
    _, after = template.encode_completion((Message("user", "a"),), thinking)
    assert decoded(template, after).startswith("<think>\nhm\n</think>\n\nb\n<tool_call>")
    row = {"messages": [USER, {"role": "assistant", "content": "b", "reasoning_content": "hm"}]}
    assert parse_one(row) == Demonstration(
        row=1, messages=(Message("user", "a"), Message("assistant", "b", reasoning="hm"))
    )


@pytest.mark.parametrize("mode", ["plain", "alpaca", "chat"])
def test_template_without_tools_is_refused_with_the_remedy(mode):
    template = Template(byte_tokenizer(template=UNMARKED), mode=mode)
    with pytest.raises(ConfigError, match=r"row 3: the chat template cannot render tools; use data\.template=tools"):
        template.encode_prompt((DECLARED, Message("user", "a")), row=3)
    with pytest.raises(ConfigError, match=r"cannot render reasoning_content; write the reasoning into the content"):
        template.encode((Message("user", "a"), Message("assistant", "b", reasoning="hm")))
