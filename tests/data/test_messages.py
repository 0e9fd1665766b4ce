"""Fields of messages: used, listed as unused, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from postrain.data.conversation import Message
from postrain.data.formats import parse
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.prompt import Prompt
from postrain.errors import ConfigError
from tests.data.helpers import chat, table


def conversation(answer: dict[str, Any], **user_fields: Any) -> dict[str, Any]:
    user = {"role": "user", "content": "a", **user_fields}
    return {"messages": [user, {"role": "assistant", "content": "b", **answer}]}


def assert_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 1: .*{message}"):
        parse(table([row]), {})


@pytest.mark.parametrize(
    "field",
    [
        *("tool_call_id", "images", "audio", "video", "refusal", "name", "mask"),
        *("tool_responses", "available_tools", "imageUrls", "media", "thoughts", "reasoning_text", "channel", "label"),
    ],
)
def test_fields_that_change_the_meaning_of_a_message_are_refused_by_name(field):
    assert_refused(conversation({field: "x"}), f"messages has {field}: .*; remove the field or the row")


@pytest.mark.parametrize("nothing", [None, [], {}, "", False])
def test_empty_fields_are_ignored(nothing):
    fields = (
        "tool_calls",
        "function_call",
        "name",
        "reasoning_content",
        "prefix",
        *(() if nothing is False else ("id",)),
    )
    found = parse(table([conversation(dict.fromkeys(fields, nothing))]), {})
    assert found.records == (Demonstration(row=1, messages=chat("a", "b")),)
    assert not found.unused


@pytest.mark.parametrize("kind", ["image_url", "image", "input_audio", "file", ["text"], None])
def test_content_parts_that_are_not_text_are_refused(kind):
    assert_refused(conversation({"content": [{"type": kind, "text": "b"}]}), "content part of the type")


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "b"}],
        [{"type": "text", "text": ""}, {"type": "output_text", "text": "b", "image_url": None}],
        ["b"],
    ],
)
def test_content_parts_of_text_are_joined(content):
    assert parse(table([conversation({"content": content})]), {}).records == (
        Demonstration(row=1, messages=chat("a", "b")),
    )


@pytest.mark.parametrize("role", [["user"], {"a": 1}, 3, None, True, "judge"])
def test_unknown_role_is_refused(role):
    assert_refused(conversation({}, role=role), "has a message with the role")


def test_conflicting_field_spellings_are_refused():
    assert_refused(conversation({"from": "human"}), "a message whose role and from differ")
    assert_refused(conversation({"value": "x"}), "a message whose content and value differ")
    assert_refused(conversation({"weight": 0, "train": True}), "a message whose weight and train differ")


@pytest.mark.parametrize(
    ("field", "weight", "in_loss"),
    [
        ("weight", 0, False),
        ("weight", 1, True),
        ("weight", 1.0, True),
        ("weight", None, True),
        ("loss_weight", 0.0, False),
        ("train", False, False),
        ("training", True, True),
        ("loss", False, False),
    ],
)
def test_message_weights_zero_and_one_select_the_answers_in_the_loss(field, weight, in_loss):
    found = parse(table([conversation({field: weight})]), {})
    (record,) = found.records
    assert isinstance(record, Demonstration)
    assert record.messages[-1].in_loss is in_loss
    assert not found.unused


@pytest.mark.parametrize("weight", [0.5, 2, -1, float("nan"), "0", [0], 10**400])
def test_message_weights_other_than_zero_and_one_are_refused(weight):
    assert_refused(conversation({"weight": weight}), r"messages\.weight has to be 0 \(context\) or 1 \(in the loss\)")


def test_weight_is_for_single_assistant_messages_only():
    assert_refused(conversation({}, weight=1), "a user message with weight 1; .* remove the field, or set it to 0")
    assert len(parse(table([conversation({}, weight=0)]), {}).records) == 1


@pytest.mark.parametrize("other", [{"label": True}, {"chosen": "x"}])
def test_answer_of_weight_zero_is_refused_in_unpaired_preferences_and_pairs(other):
    row = conversation({"weight": 0})
    if "chosen" in other:
        row = {"chosen": row["messages"], "rejected": conversation({"content": "c"})["messages"]}
    assert_refused({**other, **row}, "ends with a message of weight 0")


def test_history_that_is_not_a_list_of_pairs_is_refused():
    for history in ("x", [["a"]], [["a", 3]], [3]):
        assert_refused(
            {"prompt": "a", "completion": "b", "history": history}, r"history has to be a list of \[user, assist"
        )


def test_unused_flag_is_named_even_if_false():
    assert parse(table([conversation({"end_turn": False})]), {}).unused == {"messages.end_turn": 1}
    assert_refused(conversation({"label": False}), "messages has label: a label belongs in a column of the row")


@pytest.mark.parametrize("field", ["train_on_turn", "learnable", "trainable"])
def test_other_names_of_a_zero_weight_exclude_an_answer(field):
    (record,) = parse(table([conversation({field: False})]), {}).records
    assert isinstance(record, Demonstration)
    assert not record.messages[-1].in_loss


@pytest.mark.parametrize("field", ["prefix", "partial"])
def test_prefill_as_the_last_message_makes_a_prompt(field):
    row = conversation({field: True})
    expected = (chat("a")[0], Message("assistant", "b", prefill=True))
    assert parse(table([row]), {}).records == (Prompt(row=1, prompt=expected),)
    assert parse(table([{"prompt": row["messages"]}]), {}).records == (Prompt(row=1, prompt=expected),)
    assert_refused(
        {"messages": [*row["messages"], {"role": "user", "content": "c"}]},
        f"{field}: only an assistant message at the end",
    )


def test_messages_as_an_object_of_lists_are_read():
    row = {"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}
    assert parse(table([row]), {}).records == (Demonstration(row=1, messages=chat("a", "b")),)


def test_role_names_with_the_same_meaning_agree():
    row = conversation({"from": "gpt", "value": "b"})
    assert parse(table([row]), {}).records == (Demonstration(row=1, messages=chat("a", "b")),)
    assert_refused(conversation({"from": "human"}), "role and from differ")


def test_error_of_an_unknown_message_layout_names_the_fields():
    assert_refused(
        {"conversation": [{"input": "a", "output": "b"}]}, "a message without role; its fields are input, output"
    )
    assert_refused(
        {"messages": [{"role": "user", "text": "b"}]}, "a message without content; its fields are role, text"
    )


def test_error_of_a_refused_content_part_names_the_reason():
    assert_refused(
        conversation({"content": [{"type": "tool_use"}]}),
        "type 'tool_use': calls are read from tool_calls",
    )
    assert_refused(
        conversation({"content": [{"type": "thinking", "thinking": "b"}]}),
        "type 'thinking': reasoning is read from reasoning_content",
    )
