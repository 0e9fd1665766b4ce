"""Calls in completions, and their comparison with the expected ones."""

from __future__ import annotations

import json

import pytest

from postrain.rewards.tool_calls import find_calls, tool_calls

ADD = {"name": "add", "arguments": {"x": 1, "y": [2.5, "a"]}}
TAGGED = f"<tool_call>\n{json.dumps(ADD)}\n</tool_call>"


@pytest.mark.parametrize(
    "text",
    [
        TAGGED,
        f"<think>\n{{'no': 1}} or {json.dumps({**ADD, 'name': 'other'})}\n</think>\n\nLet me add.\n{TAGGED}",
        TAGGED.removesuffix("</tool_call>"),
        json.dumps(ADD),
        f"[TOOL_CALLS] {json.dumps([ADD])}",
        f'I call {{"name": "add", "parameters": {json.dumps(ADD["arguments"])}}} now {{x}}.',
        json.dumps({"type": "function", "function": {"name": "add", "arguments": json.dumps(ADD["arguments"])}}),
        json.dumps({"tool_calls": [ADD]}),
    ],
)
def test_calls_are_found_in_the_forms_of_common_templates(text):
    assert (find_calls(text).calls, find_calls(text).parsed) == ((ADD,), True)


@pytest.mark.parametrize(
    "text",
    [
        # Qwen3-Coder
        '<function=add>\n<parameter=x>\n1\n</parameter>\n<parameter=y>\n[2.5, "a"]\n</parameter>\n</function>',
        "<function=add>" + json.dumps(ADD["arguments"]) + "</function>",
        # GLM
        'add\n<arg_key>x</arg_key>\n<arg_value>1</arg_value>\n<arg_key>y</arg_key>\n<arg_value>[2.5, "a"]</arg_value>',
    ],
)
def test_untyped_calls_are_found_in_tags(text):
    assert find_calls(f"<tool_call>\n{text}\n</tool_call>").calls == (ADD,)


def test_untyped_values_are_read_as_json_or_as_text():
    values = {"a": "Oslo", "b": "2", "c": "True", "d": "None", "e": "null", "f": '"g"'}
    body = "".join(f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    (call,) = find_calls(f"<tool_call><function=f>\n{body}</function></tool_call>").calls
    assert call["arguments"] == {"a": "Oslo", "b": 2, "c": True, "d": None, "e": None, "f": "g"}


@pytest.mark.parametrize("value", ["12345", "true", "None", "[1]", '"a"'])
def test_untyped_value_is_compared_as_text_and_as_json(value):
    forms = (
        f"<tool_call><function=f>\n<parameter=a>\n{value}\n</parameter>\n</function></tool_call>",
        f"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>{value}</arg_value></tool_call>",
    )
    (read,) = find_calls(forms[0]).calls
    for form in forms:
        for expected in (value, read["arguments"]["a"]):
            assert tool_calls([form], [[{"name": "f", "arguments": {"a": expected}}]]) == [1]
        assert tool_calls([form], [[{"name": "f", "arguments": {"a": "b"}}]]) == pytest.approx([2 / 3])
    # values in JSON have types
    typed = json.dumps({"name": "f", "arguments": {"a": 12345}})
    assert tool_calls([typed], [[{"name": "f", "arguments": {"a": "12345"}}]]) == pytest.approx([2 / 3])


def test_declared_name_alone_in_tags_is_a_call_without_arguments():
    now = {"name": "now", "arguments": {}}
    text = "<tool_call>now\n</tool_call>"
    assert tool_calls([text, text + TAGGED], [[now], [ADD, now]]) == [1, 1]
    assert find_calls(text, ["now"]).calls == (now,)
    assert find_calls(text).malformed == find_calls("<tool_call></tool_call>", ["now"]).malformed == 1


@pytest.mark.parametrize(
    "call", ['{"name": "now"}', '{"name": "now", "arguments": null}', '{"name": "now", "arguments": ""}']
)
def test_call_without_arguments_has_none(call):
    now = {"name": "now", "arguments": {}}
    assert find_calls(f"<tool_call>{call}</tool_call>").calls == (now,)
    assert tool_calls([call], [[now]]) == [1]
    # outside of tags it is a call of a declared function only
    assert find_calls('{"name": "Bob"}').calls == ()
    assert find_calls('<tool_call>{"name": "now", "args": {"zone": 1}}</tool_call>').malformed == 1


def test_the_end_of_reasoning_inside_a_call_hides_no_call():
    call = {"name": "f", "arguments": {"q": "a </think> b"}}
    tagged = f"<tool_call>{json.dumps(call)}</tool_call>"
    for text in (tagged, f"<think>{TAGGED}</think>{tagged}", f"<think>write <tool_call> tags</think> {tagged}"):
        assert find_calls(text).calls == (call,)
    assert find_calls(tagged + TAGGED).calls == (call, ADD)


def test_arguments_nested_too_deeply_are_malformed():
    def nested(levels: int) -> str:
        arguments = '{"a": ' * levels + "1" + "}" * levels
        return f'<tool_call>{{"name": "add", "arguments": {arguments}}}</tool_call>'

    assert tool_calls([nested(600), nested(100)], [[ADD], [ADD]]) == pytest.approx([0, 2 / 3])
    assert [find_calls(nested(levels)).malformed for levels in (100, 101, 600)] == [0, 1, 1]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (TAGGED, 1),
        (TAGGED.replace("1", "1.0"), 1),
        (TAGGED.replace("1", "true"), 2 / 3),
        (TAGGED.replace('"a"', '"A"'), 2 / 3),
        (TAGGED.replace("add", "sub"), 1 / 3),
        (TAGGED + TAGGED, 1 / 3),
        (TAGGED + "<tool_call>add(1)</tool_call>", 0),
        ("<tool_call>\n{}\n</tool_call>", 0),
        ("add(x=1)", 0),
        ("", 0),
        ('{"a": ' * 2000, 0),
    ],
)
def test_score_of_a_completion(text, score):
    assert tool_calls([text], [[ADD]]) == pytest.approx([score])


def test_order_of_parallel_calls_does_not_count():
    other = {"name": "add", "arguments": {}}
    text = TAGGED + f"\n<tool_call>{json.dumps(other)}</tool_call>"
    assert tool_calls([text], [[{**other, "id": "c1"}, ADD]]) == [1]


def test_row_that_expects_no_call_and_row_without_the_column():
    assert tool_calls(["Hello {you}", TAGGED, "<tool_call>", TAGGED], [[], [], [], None]) == [1, 0, 0, None]
