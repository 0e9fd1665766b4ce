"""Column layouts of public data sets, and conflicting columns."""

from __future__ import annotations

import pytest

from postrain.data.conversation import Message
from postrain.data.formats import parse
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.unpaired_preference import UnpairedPreference
from postrain.data.prompt_template import PromptTemplate
from postrain.data.records import Record
from postrain.data.values import Cell
from postrain.errors import ConfigError
from tests.data.helpers import chat, table

SYSTEM = Message("system", "s")
USER = [{"role": "user", "content": "a"}]
CHOSEN, REJECTED = {"role": "assistant", "content": "b"}, {"role": "assistant", "content": "c"}


def parse_one(row: dict, **columns: str) -> Record:
    """The record of a table of one row."""
    (record,) = parse(table([row]), columns).records
    return record


def human(text: str) -> dict:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict:
    return {"from": "gpt", "value": text}


@pytest.mark.parametrize("prompt", ["prompt", "instruction", "question", "query", "problem", "input"])
@pytest.mark.parametrize("completion", ["completion", "response", "output", "answer"])
def test_question_and_answer_columns_make_a_demonstration(prompt, completion):
    found = parse_one({prompt: "a", completion: "b"})
    if (prompt, completion) == ("prompt", "answer"):
        # With a column named prompt, the answer is a reward column.
        assert found == Prompt(row=1, prompt=chat("a"), columns={"answer": "b"})
    else:
        assert isinstance(found, Demonstration)
        assert found.messages == chat("a", "b")


def test_solution_is_the_completion_of_a_problem_only():
    found = parse_one({"problem": "a", "solution": "b", "answer": 4})
    assert found == Demonstration(row=1, messages=chat("a", "b"), columns={"solution": "b", "answer": 4})
    prompt = parse_one({"prompt": "a", "solution": "b"})
    assert prompt == Prompt(row=1, prompt=chat("a"), columns={"solution": "b"})


@pytest.mark.parametrize("answer", [4, "4"])
def test_numeric_answer_becomes_text(answer):
    found = parse_one({"question": "a", "answer": answer})
    assert found == Demonstration(row=1, messages=chat("a", "4"), columns={"answer": "4", "solution": "4"})


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "input": "i", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "context": "i", "chosen": "b", "rejected": "c"},
        {"conversations": [human("a\n\ni")], "chosen": gpt("b"), "rejected": gpt("c")},
        {"messages": [{"role": "user", "content": "a\n\ni"}], "chosen": "b", "rejected": "c"},
        {
            "input": {"messages": [{"role": "user", "content": "a\n\ni"}], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [CHOSEN],
            "non_preferred_output": [REJECTED],
        },
        {
            "chosen_messages": [{"role": "user", "content": "a\n\ni"}, CHOSEN],
            "rejected_messages": [{"role": "user", "content": "a\n\ni"}, REJECTED],
        },
        {"question": "a\n\ni", "chosen": [CHOSEN], "rejected": [REJECTED]},
    ],
)
def test_common_preference_layouts_are_read(row):
    assert parse_one(row) == Preference(row=1, prompt=chat("a\n\ni"), chosen="b", rejected="c")


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b", "system": "s", "history": [["h", "g"]], "input": ""},
        {
            "instruction": "a",
            "output": "b",
            "system_prompt": "s",
            "history": [{"role": "user", "content": "h"}, REJECTED],
        },
        {"prompt": "a", "completion": "b", "system": Cell("s"), "history": [["h", "g"]]},
        {"conversations": [human("h"), gpt("g"), human("a"), gpt("b")], "system": "s", "tools": "[]"},
        {"messages": [{"role": "Developer", "content": "s"}, *USER, CHOSEN], "system": "s", "history": [["h", "g"]]},
    ],
)
def test_system_and_history_come_before_the_prompt(row):
    record = parse_one(row)
    assert isinstance(record, Demonstration)
    assert [turn.role for turn in record.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert record.messages[0] == SYSTEM
    assert [turn.content for turn in record.messages[3:]] == ["a", "b"]
    assert record.columns in ({}, {"tools": "[]"})


@pytest.mark.parametrize("answer", [{"chosen": "b", "rejected": "c"}, {"steps": ["b"], "labels": [True]}, {}])
def test_system_and_history_apply_to_every_kind_of_record(answer):
    record = parse_one({"prompt": "a", "system": "s", "history": [["h", "g"]], **answer})
    assert getattr(record, "prompt", None) == (SYSTEM, *chat("h", "g", "a"))


@pytest.mark.parametrize(
    "prompt", ["Is it even?\n\n2", "Read: 2\nQuestion: even?", "Input:\n2\n\nIs it even?", "2", "Is it: '2'."]
)
def test_input_that_is_a_part_of_the_prompt_is_not_appended_and_counted(prompt):
    found = parse(table([{"prompt": prompt, "input": "2", "completion": "b"}]), {})
    assert found.records == (Demonstration(row=1, messages=chat(prompt, "b")),)
    assert found.repaired == {"input not appended to a prompt that contains it": 1}


@pytest.mark.parametrize(
    "prompt", ["Is it even? Say 1 for odd, 2 for even.", "Is it one of:\n1\n2\n3", "Say: '2' or '3'."]
)
def test_input_that_occurs_in_a_sentence_or_list_of_the_prompt_is_appended(prompt):
    found = parse(table([{"instruction": prompt, "input": "2", "output": "b"}]), {})
    assert found.records == (Demonstration(row=1, messages=chat(f"{prompt}\n\n2", "b")),)
    assert not found.repaired


def test_conversations_without_a_final_answer_are_prompts():
    prompt, complete = {"messages": USER, "answer": "b"}, {"messages": [*USER, CHOSEN], "answer": "b"}
    assert parse(table([prompt]), {}).records == (Prompt(row=1, prompt=chat("a"), columns={"answer": "b"}),)
    found = parse(table([prompt, complete]), {})
    assert found.records == (Demonstration(row=2, messages=chat("a", "b"), columns={"answer": "b"}),)
    assert found.dropped == {"the conversation does not end with an answer": 1}


@pytest.mark.parametrize("name", ["label", "kto_tag", "desirable", "thumbs_up", "thumbs", "rating", "is_correct"])
@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "a", "output": "b"},
        {"prompt": "a", "completion": "b"},
        {"messages": [*USER, CHOSEN]},
        {"conversations": [human("a"), gpt("b")]},
        {"question": "a", "response": "b"},
    ],
)
def test_answer_with_a_label_is_an_unpaired_preference_in_every_layout(row, name):
    found = parse(table([{**row, name: True}, {**row, name: False}]), {})
    assert [
        (one.prompt, one.completion, one.label) for one in found.records if isinstance(one, UnpairedPreference)
    ] == [
        (chat("a"), "b", True),
        (chat("a"), "b", False),
    ]
    assert not found.unused


@pytest.mark.parametrize(("value", "label"), [("👍", True), ("down", False), (Cell("True"), True)])
def test_label_spellings_are_read(value, label):
    record = parse_one({"prompt": "a", "completion": "b", "thumbs": value})
    assert record == UnpairedPreference(row=1, prompt=chat("a"), completion="b", label=label)


def test_rating_in_points_is_unused_and_named():
    found = parse(table([{"prompt": "a", "completion": "b", "rating": 4}]), {})
    assert isinstance(found.records[0], Demonstration)
    assert found.unused == {"rating": 1}


HH = "\n\nHuman: a\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "before", "answers"),
    [
        ("a ", "a ", ("b", "c")),
        (HH, HH, ("b", "c")),
        ("\n\nHuman: a", HH, ("b", "c")),
        ("Human: a\n\nAssistant:", "Human: a\n\nAssistant:", ("b", "c")),
    ],
)
def test_prompt_repeated_by_both_sides_is_removed_and_counted(prompt, before, answers):
    row = {"prompt": prompt, "chosen": f"{before}{answers[0]}", "rejected": f"{before}{answers[1]}"}
    found = parse(table([row]), {})
    assert isinstance(found.records[0], Preference)
    assert (found.records[0].chosen, found.records[0].rejected) == answers
    assert found.repaired == {"prompt removed from an answer that repeats it": 1}


def test_answer_that_begins_with_a_short_prompt_is_kept():
    rows = [{"prompt": "Hi", "completion": "Hi there"}, {"prompt": "Bye", "completion": "So long"}]
    found = parse(table(rows), {})
    assert [one.messages[-1].content for one in found.records if isinstance(one, Demonstration)] == [
        "Hi there",
        "So long",
    ]
    assert not found.repaired


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "instruction": "x", "output": "b"}, "prompt and instruction both hold the prompt and differ"),
        ({"prompt": "a", "completion": "b", "response": "x"}, "completion and response both hold the completion"),
        ({"messages": [*USER, CHOSEN], "prompt": "x"}, r"prompt and messages .* data\.columns\.messages=messages"),
        ({"messages": [*USER, CHOSEN], "completion": "x"}, "completion and messages both hold the completion"),
        ({"messages": [*USER, CHOSEN], "conversations": [*USER, REJECTED]}, "messages and conversations both hold"),
        ({"messages": [{"role": "system", "content": "x"}, *USER, CHOSEN], "system": "s"}, "system and the first"),
        ({"prompt": "x", "chosen": [*USER, CHOSEN], "rejected": [*USER, REJECTED]}, "prompt and the turns that begin"),
        ({"prompt": "a", "completion": "b", "label": True, "kto_tag": False}, "label and kto_tag both hold the label"),
    ],
)
def test_conflicting_columns_are_refused_by_name(row, message):
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 1: .*{message}"):
        parse_one(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "instruction": "a", "output": "b"},
        {"messages": [*USER, CHOSEN], "prompt": "a", "completion": [CHOSEN]},
        {"prompt": USER, "completion": [*USER, CHOSEN]},
    ],
)
def test_equal_columns_are_used_once(row):
    found = parse(table([row]), {})
    assert found.records == (Demonstration(row=1, messages=chat("a", "b")),)
    assert not found.unused


OTHER = [{"role": "assistant", "content": "This is a."}, *USER]


def test_prompt_that_later_turns_contain_or_repeat_is_kept():
    whole = chat("a", "This is a.", "a", "b")
    assert parse_one({"prompt": "a", "completion": [*OTHER, CHOSEN]}) == Demonstration(row=1, messages=whole)
    pair = {"prompt": "a", "chosen": [*OTHER, CHOSEN], "rejected": [*OTHER, REJECTED]}
    assert parse_one(pair) == Preference(row=1, prompt=whole[:-1], chosen="b", rejected="c")


@pytest.mark.parametrize("prompt", [[{"role": "system", "content": "s"}, *USER], USER])
@pytest.mark.parametrize("before", [[{"role": "system", "content": "s "}, *USER], USER])
def test_prompt_repeated_with_or_without_its_system_message_is_used_once(prompt, before):
    pair = parse_one({"prompt": prompt, "chosen": [*before, CHOSEN], "rejected": [*before, REJECTED]})
    one = parse_one({"prompt": prompt, "completion": [*before, CHOSEN]})
    assert isinstance(pair, Preference)
    assert isinstance(one, Demonstration)
    roles = ["user"] if prompt == before == USER else ["system", "user"]
    assert [turn.role for turn in pair.prompt] == roles
    assert [turn.role for turn in one.messages] == [*roles, "assistant"]


def test_prompt_of_a_pair_may_be_its_last_question():
    turns = [{"role": "user", "content": "q"}, *OTHER]
    pair = {"prompt": "a", "chosen": [*turns, CHOSEN], "rejected": [*turns, REJECTED]}
    assert parse_one(pair) == Preference(row=1, prompt=chat("q", "This is a.", "a"), chosen="b", rejected="c")


def test_mapped_column_wins_and_the_other_is_listed_as_unused():
    row = {"prompt": "a", "instruction": "x", "output": "b"}
    found = parse(table([row]), {"prompt": "instruction"})
    assert found.records == (Demonstration(row=1, messages=chat("x", "b")),)
    assert found.unused == {"prompt": 1}


def test_input_that_is_not_text_is_refused():
    for answer in ({"output": "b"}, {"chosen": "b", "rejected": "c"}):
        with pytest.raises(
            ConfigError, match=r"line 1: input has to be text, which is appended to the prompt, got \[1\]"
        ):
            parse_one({"instruction": "a", "input": [1], **answer})
    assert parse_one({"prompt": "a", "input": [1]}) == Prompt(row=1, prompt=chat("a"), columns={"input": [1]})
    record = parse_one({"instruction": "a", "input": None, "output": "b"})
    assert isinstance(record, Demonstration)
    assert record.messages == chat("a", "b")


@pytest.mark.parametrize("name", ["tools", "functions", "tool_calls", "images", "audio", "chat_template_kwargs"])
@pytest.mark.parametrize("row", [{"text": "t"}, {"prompt": "a"}, {"prompt": "a", "completion": "b"}])
def test_columns_that_change_the_meaning_of_a_row_are_refused_by_name(row, name):
    if name in ("tools", "functions") and "prompt" in row:
        return  # used, see test_tool_calls.py
    with pytest.raises(ConfigError, match=f"line 1: has the column {name}: .*; remove the column or the row"):
        parse_one({**row, name: [{"name": "f"}]})
    for nothing in (None, [], "", "[]", {}):
        parse_one({**row, name: nothing})


@pytest.mark.parametrize(("weight", "records"), [(1, 1), (True, 1), (0, 0), (Cell("1.0"), 1)])
def test_row_of_weight_zero_is_dropped_and_counted(weight, records):
    found = parse(table([{"prompt": "a", "completion": "b", "weight": weight}]), {})
    assert len(found.records) == records
    assert found.dropped == ({} if records else {"row of weight 0": 1})
    assert not found.unused


@pytest.mark.parametrize("weight", [0.5, float("nan"), "heavy", [1]])
def test_row_weights_other_than_zero_and_one_are_refused_except_for_prompts(weight):
    with pytest.raises(ConfigError, match=r"line 1: weight (has to be|is NaN)"):
        parse_one({"prompt": "a", "completion": "b", "weight": weight})
    assert parse_one({"prompt": "a", "weight": weight}).columns["weight"] is weight


def test_unused_columns_and_fields_are_counted_by_name():
    rows = [
        {"messages": [{**USER[0], "id": 1}, CHOSEN], "source": "web", "score": None, "lang": ""},
        {"messages": [*USER, CHOSEN], "source": "book", "score": 3, "lang": ""},
    ]
    found = parse(table(rows), {})
    assert found.unused == {"source": 2, "score": 1, "messages.id": 1}


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "a", "completion": float("nan")}, "completion"),
        ({"question": float("nan"), "answer": "b"}, "question"),
        ({"text": float("nan")}, "text"),
        ({"prompt": "a", "chosen": "b", "rejected": float("nan")}, "rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("nan")}, "margin"),
    ],
)
def test_nan_is_refused_with_its_row_column_and_remedy(row, column):
    with pytest.raises(ConfigError) as caught:
        parse_one(row)
    assert str(caught.value) == (
        f"rows.jsonl, line 1: {column} is NaN, a missing value of pandas; drop the row, as with "
        f"frame.dropna(subset=['{column}']), or replace NaN by null"
    )


@pytest.mark.parametrize("margin", [float("inf"), 10**400, True, Cell("big")])
def test_non_finite_margin_is_refused(margin):
    with pytest.raises(ConfigError, match="line 1: margin has to be a finite number, got"):
        parse_one({"prompt": "a", "chosen": "b", "rejected": "c", "margin": margin})


@pytest.mark.parametrize(("cell", "margin"), [("1.5", 1.5), ("", 0.0)])
def test_margin_of_a_csv_file_is_parsed_as_a_number(cell, margin):
    record = parse_one({"prompt": "a", "chosen": "b", "rejected": "c", "margin": Cell(cell)})
    assert isinstance(record, Preference)
    assert record.margin == margin


@pytest.mark.parametrize(("preference", "chosen", "margin"), [(-2, "b", 2), (1, "c", 1), (Cell("3"), "c", 3)])
def test_two_responses_and_a_preference_make_a_pair(preference, chosen, margin):
    row = {"prompt": "a", "response_1": "b", "response_2": "c", "preference_strength": preference}
    found = parse_one(row)
    assert isinstance(found, Preference)
    assert (found.prompt, found.chosen, found.margin) == (chat("a"), chosen, margin)
    assert found.rejected in {"b", "c"} - {chosen}


def test_ties_between_two_responses_are_dropped_and_counted():
    rows = [{"prompt": "a", "response1": "b", "response2": "c", "preference": number} for number in (0, 1, 0.0)]
    found = parse(table(rows), {})
    assert (len(found.records), found.dropped) == (1, {"no preference between the two responses": 2})


def test_preference_that_is_not_a_number_is_refused():
    row = {"prompt": "a", "response1": "b", "response2": "c", "preference": "model_a"}
    with pytest.raises(ConfigError, match=r"rows.jsonl, line 1: preference has to be a finite number, got 'model_a'"):
        parse_one(row)


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"problem": "a", "solution": r"So \boxed{1}, or \boxed{\frac{1}{\sqrt{2}}}."}, r"\frac{1}{\sqrt{2}}"),
        ({"messages": [*USER, CHOSEN], "solution": r"\boxed{x}"}, "x"),
        ({"prompt": "a", "solution": r"\boxed{x}", "answer": "y"}, "y"),
        ({"prompt": "a", "solution": r"\boxed{x"}, None),
        ({"prompt": "a", "solution": "x"}, None),
    ],
)
def test_answer_for_rewards_is_the_boxed_one_of_a_solution(row, answer):
    assert parse_one(row).columns.get("answer") == answer


def test_solution_without_a_box_has_no_answer_if_others_have_one():
    rows = [{"problem": "a", "solution": r"\boxed{x}"}, {"problem": "b", "solution": "The proof is done."}]
    assert [record.columns["answer"] for record in parse(table(rows), {}).records] == ["x", None]
    assert "answer" not in parse(table(rows[1:]), {}).records[0].columns


def test_prompt_template_writes_the_prompt_and_keeps_its_columns():
    rows = table([{"nums": [1, 2], "target": 3, "question": "?"}])
    parsed = parse(rows, {}, PromptTemplate("Make {target} of {nums}: {{1 + 2}} {question}"))
    (record,) = parsed.records
    assert isinstance(record, Prompt)
    assert record.prompt == chat("Make 3 of [1, 2]: {1 + 2} ?")
    assert record.columns == {"nums": [1, 2], "target": 3, "question": "?"}
    assert not parsed.unused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"write \{\{ and \}\} for braces"),
        ("{target:>3}", "expected column names alone in braces"),
        ("{}", "expected column names alone in braces"),
        ("Make 3.", "names no column"),
        ("{goal}", "rows.jsonl, line 1: data.prompt_template needs the column goal; the columns here are target"),
    ],
)
def test_prompt_template_that_cannot_be_filled_is_one_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse(table([{"target": 3}]), {}, PromptTemplate(text))
