"""evaluation=tool_calls samples every assistant message of held-out conversations with tools."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from postrain.data.chat import Template
from postrain.data.conversation import DECLARATION, Message
from postrain.data.kinds.demonstration import Demonstration
from postrain.evaluation import tool_calls
from postrain.evaluation.tool_calls import NEEDS_TOOLS, UNREADABLE, ToolCalls, turns_to_answer
from tests.data.helpers import UNMARKED, byte_tokenizer
from tests.evaluation.fake_eval_model import eval_model

CALL = {"name": "add", "arguments": {"x": 1}}
TURNS = (
    Message(DECLARATION, json.dumps([{"type": "function", "function": {"name": "add"}}])),
    Message("user", "a"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "2"),
    Message("assistant", "It is 2."),
)
RECORD = Demonstration(row=7, messages=TURNS)
RIGHT = f"<tool_call>{json.dumps(CALL)}</tool_call>"


def given(template: Template, *records: Demonstration):
    data = SimpleNamespace(records=SimpleNamespace(held_out=records), encode_prompts=list)
    return eval_model(template=template, data_as=lambda kind: data)


def test_every_assistant_message_is_an_item_with_its_expected_calls():
    assert [(item.prompt, item.columns["tool_calls"]) for item in turns_to_answer(RECORD)] == [
        (TURNS[:2], [CALL]),
        (TURNS[:4], []),
    ]
    assert turns_to_answer(Demonstration(row=1, messages=TURNS[1:])) == []


def test_metrics_are_shares_of_the_messages_that_expect_calls_or_text(monkeypatch):
    answers = [RIGHT, "Done.", RIGHT.replace("1", "2"), RIGHT]
    completions = SimpleNamespace(completions=answers)
    monkeypatch.setattr(tool_calls, "sample_prompts", lambda *_, **__: completions)
    monkeypatch.setattr(tool_calls, "first_prompt", lambda *_: "")
    template = Template(byte_tokenizer(template=UNMARKED), mode="tools")
    found = ToolCalls()(given(template, RECORD, RECORD))
    shares = {name: (estimate.value, estimate.n) for name, estimate in found.metrics.items()}
    assert shares == {
        "parsed": (1, 2),
        "function": (1, 2),
        "arguments": (0.5, 2),
        "no_call": (0.5, 2),
        "accuracy": (0.5, 4),
    }
    assert [record["row"] for record in found.records[:2]] == ["7/2", "7/4"]


@pytest.mark.parametrize(("records", "note"), [((), NEEDS_TOOLS), ((RECORD,), UNREADABLE)])
def test_data_without_tools_and_unreadable_templates_are_noted(records, note):
    source = (
        "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}{{ m.role + m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.x }}){% endfor %}<|stop|>"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
    )
    template = Template(byte_tokenizer(template=source))
    assert ToolCalls()(given(template, *records)).notes == (note,)
