"""Parsing of rows into records, and errors for malformed rows."""

from __future__ import annotations

import pytest

from postrain.data.conversation import Message, transcript
from postrain.data.formats import parse
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.steps import Steps
from postrain.data.kinds.text import Text
from postrain.data.kinds.unpaired_preference import UnpairedPreference
from postrain.data.values import Cell
from postrain.errors import ConfigError
from tests.data.helpers import chat, table

HH = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: What is 2 + 2?\n\nAssistant:"


def parse_one(row: dict, **columns: str):
    """The record of a table of one row."""
    (record,) = parse(table([row]), columns).records
    return record


def turns(*pairs: tuple[str, str]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"text": "Once.", "id": 3}, Text(row=1, text="Once.", columns={"id": 3})),
        ({"text": "fine .", "label": 1}, Text(row=1, text="fine .", columns={"label": 1})),
        ({"prompt": "a", "completion": "b"}, Demonstration(row=1, messages=chat("a", "b"))),
        (
            {"prompt": turns(("user", "a")), "completion": turns(("assistant", "b"))},
            Demonstration(row=1, messages=chat("a", "b")),
        ),
        ({"instruction": "a", "input": "", "output": "b"}, Demonstration(row=1, messages=chat("a", "b"))),
        ({"instruction": "a", "input": "i", "output": "b"}, Demonstration(row=1, messages=chat("a\n\ni", "b"))),
        (
            {"instruction": "a", "context": "c", "response": "b", "category": "qa"},
            Demonstration(row=1, messages=chat("a\n\nc", "b"), columns={"category": "qa"}),
        ),
        ({"instruction": "a", "response": "b"}, Demonstration(row=1, messages=chat("a", "b"))),
        (
            {"instruction": "a", "input": "", "output": "b", "text": "a b"},
            Demonstration(row=1, messages=chat("a", "b"), columns={"text": "a b"}),
        ),
        (
            {"messages": turns(("system", "s"), ("user", "a"), ("assistant", "b"))},
            Demonstration(row=1, messages=(Message("system", "s"), *chat("a", "b"))),
        ),
        (
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            Demonstration(row=1, messages=chat("a", "b")),
        ),
        (
            {"question": "q", "answer": "2 * 600 = 1,200\n#### 1,200"},
            Demonstration(
                row=1,
                messages=chat("q", "2 * 600 = 1,200\n#### 1,200"),
                columns={"answer": "1200", "solution": "2 * 600 = 1,200\n#### 1,200"},
            ),
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "gold": {"x": 1}},
            Preference(row=1, prompt=chat("a"), chosen="b", rejected="c", columns={"gold": {"x": 1}}),
        ),
        (
            {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2},
            Preference(row=1, prompt=chat("a"), chosen="b", rejected="c", margin=2),
        ),
        (
            {
                "prompt": "a",
                "chosen": turns(("user", "a"), ("assistant", "b")),
                "rejected": turns(("user", "a"), ("assistant", "c")),
                "messages": turns(("user", "a"), ("assistant", "b")),
            },
            Preference(
                row=1,
                prompt=chat("a"),
                chosen="b",
                rejected="c",
                columns={"messages": turns(("user", "a"), ("assistant", "b"))},
            ),
        ),
        (
            {"prompt": "a", "chosen": turns(("assistant", "b")), "rejected": turns(("assistant", "c"))},
            Preference(row=1, prompt=chat("a"), chosen="b", rejected="c"),
        ),
        (
            {"chosen": f"{HH} It is 4. ", "rejected": f"{HH} It is 5."},
            Preference(row=1, prompt=chat("Hi", "Hello.", "What is 2 + 2?"), chosen="It is 4.", rejected="It is 5."),
        ),
        (
            {"chosen": f"{HH} 'Assistant: 4'\n\nOr Human: 5", "rejected": f"{HH} It is 5."},
            Preference(
                row=1,
                prompt=chat("Hi", "Hello.", "What is 2 + 2?"),
                chosen="'Assistant: 4'\n\nOr Human: 5",
                rejected="It is 5.",
            ),
        ),
        (
            {"chosen": "Human: Hi\n\nAssistant: a", "rejected": "Human: Hi\n\nAssistant: b"},
            Preference(row=1, prompt=chat("Hi"), chosen="a", rejected="b"),
        ),
        (
            {"prompt": "a", "completion": "b", "label": False},
            UnpairedPreference(row=1, prompt=chat("a"), completion="b", label=False),
        ),
        (
            {"prompt": "a", "steps": ["b", "c"], "labels": [True, False]},
            Steps(row=1, prompt=chat("a"), steps=("b", "c"), labels=(True, False)),
        ),
        (
            {"prompt": "a", "completions": ["b"], "labels": [True]},
            Steps(row=1, prompt=chat("a"), steps=("b",), labels=(True,)),
        ),
        ({"prompt": HH}, Prompt(row=1, prompt=chat("Hi", "Hello.", "What is 2 + 2?"))),
        (
            {"prompt": "a", "nums": [1, 2], "target": 3},
            Prompt(row=1, prompt=chat("a"), columns={"nums": [1, 2], "target": 3}),
        ),
    ],
)
def test_usual_columns_are_recognised(row, record):
    assert parse_one(row) == record


def test_columns_with_other_names_are_mapped():
    found = parse_one({"frage": "a", "antwort": "b", "prompt": "not this"}, prompt="frage", completion="antwort")
    assert found == Demonstration(row=1, messages=chat("a", "b"))


def test_columns_can_be_swapped():
    found = parse_one({"prompt": "b", "completion": "a"}, prompt="completion", completion="prompt")
    assert found == Demonstration(row=1, messages=chat("a", "b"))


def test_one_column_can_fill_two_roles():
    found = parse_one({"word": "a", "other": 1}, prompt="word", completion="word")
    assert found == Demonstration(row=1, messages=chat("a", "a"), columns={"other": 1})


def test_error_of_a_missing_mapped_column_lists_the_columns():
    with pytest.raises(ConfigError, match=r"data\.columns\.prompt=frage: rows\.jsonl has no such column.*are q, a"):
        parse_one({"q": "a", "a": "b"}, prompt="frage")


def test_mapped_column_is_optional_in_a_row_and_looked_up_in_all_rows():
    rows = [{"q": "a", "r": "b"}, {"q": "a", "r": "b", "s": "c", "system": "x"}, {"q": "a", "r": "b", "system": "x"}]
    found = parse(table(rows), {"prompt": "q", "completion": "r", "system": "s"})
    plain, told = chat("a", "b"), (Message("system", "c"), *chat("a", "b"))
    assert [getattr(record, "messages", None) for record in found.records] == [plain, told, plain]
    assert found.unused == {"system": 2}
    with pytest.raises(ConfigError, match=r"data\.columns\.system=t: rows\.jsonl has no such .* are q, r, s, system"):
        parse(table(rows), {"prompt": "q", "completion": "r", "system": "t"})
    with pytest.raises(
        ConfigError, match=r"line 2: the column that data\.columns\.completion names is missing; .* prompt"
    ):
        parse(table([*rows[:1], {"q": "a"}]), {"prompt": "q", "completion": "r"})


def test_unknown_columns_are_listed_with_a_remedy():
    with pytest.raises(ConfigError, match=r"no known layout has the columns frage, antwort; .*data\.columns\.prompt="):
        parse_one({"frage": "a", "antwort": "b"})


def test_column_names_in_another_case_are_mapped_by_the_remedy():
    with pytest.raises(ConfigError, match=r"write data\.columns\.prompt=Prompt data\.columns\.completion=Comple"):
        parse_one({"Prompt": "a", "Completion": "b", "Id": 3})


def test_column_missing_in_one_row_names_the_line():
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 2: the column completion is missing; .* are prompt, c"):
        parse(table([{"prompt": "a", "completion": "b"}, {"prompt": "a", "c": "b"}]), {})


def test_row_with_the_layout_of_another_file_names_both_lines():
    rows = [{"prompt": "a", "completion": "b"}, {"conversations": turns(("user", "a"), ("assistant", "b"))}]
    with pytest.raises(ConfigError, match="line 1: has prompt and completion, line 2 has messages; use one layout per"):
        parse(table(rows), {})


@pytest.mark.parametrize("label", [2, -1, "positive", None, 0.5, Cell("yes"), Cell("")])
def test_label_that_is_not_binary_is_refused(label):
    with pytest.raises(
        ConfigError,
        match=r"line 1: label has to be true or false \(or 1 or 0\), got .*; convert the column, or correct ",
    ):
        parse_one({"prompt": "a", "completion": "b", "label": label})


@pytest.mark.parametrize(
    ("given", "label"), [(1, True), (0, False), (0.0, False), ("1", True), ("False", False), (Cell("0"), False)]
)
def test_labels_as_digits_or_words_are_read_and_counted(given, label):
    found = parse(table([{"prompt": "a", "completion": "b", "label": given}]), {})
    assert found.records == (UnpairedPreference(row=1, prompt=chat("a"), completion="b", label=label),)
    assert found.repaired == {"label 1 or 0, or in quotes, read as true or false": 1}
    (steps,) = parse(table([{"prompt": "a", "steps": ["b"], "labels": [given]}]), {}).records
    assert steps == Steps(row=1, prompt=chat("a"), steps=("b",), labels=(label,))


def test_class_label_of_running_text_is_unused():
    found = parse(table([{"text": "a", "label": 0}]), {})
    assert (found.unused, found.repaired) == ({"label": 1}, {})


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        ("(3, 4)", "(3, 4)"),
        ("Paris, France", "Paris, France"),
        ("1,200", "1,200"),
        ("so\n#### 1,234,567.5", "1234567.5"),
        ("so\n#### -$1,200", "-$1200"),
        ("so\n#### (1,2)", "(1,2)"),
        ("so\n#### 3, 400", "3, 400"),
    ],
)
def test_answer_for_rewards_loses_only_thousands_separators_after_the_mark(written, answer):
    assert parse_one({"question": "q", "answer": written}).columns["answer"] == answer


def test_solution_column_overrides_the_one_extracted_from_the_answer():
    found = parse_one({"question": "a", "answer": "42", "solution": "long"})
    assert found == Demonstration(row=1, messages=chat("a", "42"), columns={"answer": "42", "solution": "long"})


@pytest.mark.parametrize(("cell", "label"), [("true", True), ("False", False), (" TRUE", True)])
def test_cell_is_a_boolean_as_a_label_and_text_elsewhere(cell, label):
    found = parse_one({"prompt": "a", "completion": Cell(cell), "label": Cell(cell)})
    assert found == UnpairedPreference(row=1, prompt=chat("a"), completion=cell, label=label)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": 3}, "text has to be text, got 3"),
        ({"prompt": 3, "completion": "b"}, "prompt has to be text or a list of messages"),
        ({"prompt": "a", "completion": 3}, "completion has to be text or a list of messages"),
        (
            {"prompt": "a", "completion": turns(("user", "b"))},
            "completion has to be text, or messages that end with",
        ),
        ({"messages": [{"role": "judge", "content": "b"}]}, "the role 'judge'; known are"),
        ({"messages": [{"role": "user", "content": 3}]}, "whose content is not text"),
        ({"messages": ["b"]}, "messages has to hold messages"),
        ({"chosen": "b", "rejected": "c"}, "the column prompt is missing, and chosen is not a transcript"),
        ({"chosen": "Well.\n\nAssistant: b", "rejected": "Well.\n\nAssistant: c"}, "chosen is not a transcript"),
        (
            {"prompt": "a", "chosen": "b", "rejected": 3},
            "have to be two texts or two message lists, got 'b' and 3",
        ),
        ({"chosen": turns(("assistant", "b")), "rejected": turns(("assistant", "c"))}, "the prompt is missing; add"),
        ({"prompt": "a", "chosen": "b", "rejected": "c", "margin": "big"}, "margin has to be a finite number"),
        ({"prompt": "a", "steps": "b", "labels": [True]}, "steps has to be a list of texts, got 'b'"),
        ({"prompt": "a", "steps": ["b"], "labels": [2]}, "each of the labels has to be true or false"),
        ({"prompt": "a", "steps": ["b"], "labels": []}, "there are 1 steps but 0 labels"),
    ],
)
def test_malformed_row_error_names_the_line(row, message):
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, line 1: .*({message})"):
        parse_one(row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"messages": turns(("system", "a"))}, "the conversation does not end with an answer"),
        ({"messages": turns(("assistant", "a"))}, "the conversation does not end with an answer"),
        ({"chosen": f"{HH} x", "rejected": "\n\nHuman: Other\n\nAssistant: x"}, "do not share their prompt"),
        ({"chosen": f"{HH} x", "rejected": f"{HH} x\n\nHuman: So?\n\nAssistant: y"}, "do not share their prompt"),
        ({"chosen": f"{HH} x\n\nAssistant: z", "rejected": f"{HH} x"}, "do not share their prompt"),
        ({"chosen": f"{HH} x", "rejected": f"{HH} y\n\nHuman: Thanks."}, "does not end with the assistant"),
        (
            {"chosen": turns(("user", "a"), ("assistant", "b")), "rejected": turns(("user", "x"), ("assistant", "b"))},
            "do not share their prompt",
        ),
        (
            {"chosen": turns(("user", "a"), ("user", "b")), "rejected": turns(("user", "a"), ("user", "c"))},
            "does not end",
        ),
    ],
)
def test_unusable_rows_are_counted(row, reason):
    parsed = parse(table([row, row]), {})
    assert parsed.records == ()
    ((message, number),) = parsed.dropped.items()
    assert reason in message
    assert number == 2


USER, ANSWER = turns(("user", "a"), ("assistant", "b"))


@pytest.mark.parametrize(
    ("row", "part", "nothing"),
    [
        ({"prompt": "a", "completion": "b"}, "prompt", None),
        ({"prompt": "a"}, "prompt", []),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "rejected", None),
        ({"prompt": "a", "chosen": [ANSWER], "rejected": [ANSWER]}, "chosen", []),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt", None),
        ({"prompt": "a", "chosen": [ANSWER], "rejected": [ANSWER]}, "prompt", None),
        ({"prompt": "a", "response1": "b", "response2": "c", "preference": 1}, "response2", None),
        ({"prompt": "a", "response1": "b", "response2": "c", "preference": 1}, "prompt", None),
        ({"prompt": "a", "steps": ["b"], "labels": [True]}, "steps", []),
        ({"messages": [USER, ANSWER]}, "messages", []),
        ({"messages": [USER, ANSWER]}, "messages", None),
        ({"messages": [USER]}, "messages", None),
    ],
)
def test_rows_with_null_or_an_empty_list_are_dropped_and_counted_or_refused(row, part, nothing):
    rows = table([row, {**row, part: nothing}])
    found = parse(rows, {})
    assert [record.row for record in found.records] == [1]
    name = {"messages": "prompt" if row == {"messages": [USER]} else "conversation", "prompt": "prompt"}
    assert found.dropped == {f"empty {name.get(part, 'completion')}": 1}
    with pytest.raises(
        ConfigError, match=r"rows\.jsonl, line 2: the \w+ is empty; fill it, .*data\.quality\.empty=drop"
    ):
        parse(rows, {}, if_empty="error")


@pytest.mark.parametrize(
    ("content", "dropped"),
    [
        ([{**USER, "content": None}, ANSWER], {"empty message": 1}),
        ([USER, {**ANSWER, "content": None}, USER, ANSWER], {"empty message": 1}),
        ([{"role": "system", "content": None}, USER, ANSWER], {}),
        ([USER, {"from": "gpt", "value": None}], {}),
    ],
)
def test_null_in_a_message_is_counted_in_a_system_message_left_out_and_an_empty_last_answer(content, dropped):
    found = parse(table([{"messages": content}]), {})
    assert found.dropped == dropped
    expected = chat("a", content[-1].get("content", ""))
    assert [getattr(record, "messages", None) for record in found.records] == [expected] * (not dropped)


def test_null_as_completion_or_text_is_empty_text_which_is_dropped_where_it_is_used():
    for nothing in (None, []):
        assert parse_one({"prompt": "a", "completion": nothing}) == Demonstration(row=1, messages=chat("a", ""))
    assert parse_one({"text": None}) == Text(row=1, text="")


def test_prompt_may_be_null_where_the_answer_holds_it_or_an_input_follows():
    whole = {"prompt": None, "chosen": [USER, ANSWER], "rejected": [USER, {**ANSWER, "content": "c"}]}
    assert parse_one(whole) == Preference(row=1, prompt=chat("a"), chosen="b", rejected="c")
    assert parse_one({"prompt": None, "completion": [USER, ANSWER]}) == Demonstration(row=1, messages=chat("a", "b"))
    given = {"instruction": None, "input": "a", "output": "b"}
    assert parse_one(given) == Demonstration(row=1, messages=chat("a", "b"))


def test_transcript_splits_exactly_at_the_last_assistant_turn():
    quoted = "\n\nHuman: He wrote 'Assistant: no' to me\n\nAssistant: I see: go on\n\nHuman: Well"
    assert transcript(quoted) == chat("He wrote 'Assistant: no' to me", "I see: go on", "Well")


def test_empty_table_has_no_records():
    assert parse(table([]), {}).records == ()
