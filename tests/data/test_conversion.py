"""Conversion of records to another kind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.steps import Steps
from postrain.data.kinds.text import Text
from postrain.data.kinds.unpaired_preference import UnpairedPreference
from postrain.data.records import convert
from postrain.errors import ConfigError
from tests.data.helpers import chat

COLUMNS = {"gold": {"x": 1}}
PREFERENCE = Preference(row=5, prompt=chat("a"), chosen="b", rejected="c", columns=COLUMNS)
DEMONSTRATION = Demonstration(row=5, messages=chat("a", "b"), columns=COLUMNS)
DESIRABLE = UnpairedPreference(row=5, prompt=chat("a"), completion="b", label=True, columns=COLUMNS)
UNDESIRABLE = UnpairedPreference(row=6, prompt=chat("a"), completion="c", label=False, columns=COLUMNS)
RIGHT = Steps(row=5, prompt=chat("a"), steps=("b", "c"), labels=(True, True), columns=COLUMNS)
WRONG = Steps(row=6, prompt=chat("a"), steps=("b", "d"), labels=(True, False), columns=COLUMNS)
PROMPT = Prompt(row=5, prompt=chat("a"), columns=COLUMNS)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([PREFERENCE], [DEMONSTRATION]),
        ([PREFERENCE], [PROMPT]),
        ([DEMONSTRATION], [PROMPT]),
        ([DEMONSTRATION], [Text(row=5, text="a\n\nb", columns=COLUMNS)]),
        ([DESIRABLE], [DEMONSTRATION]),
        ([DESIRABLE], [PROMPT]),
        ([RIGHT], [PROMPT]),
        ([RIGHT], [Demonstration(row=5, messages=chat("a", "b\nc"), columns=COLUMNS)]),
        (
            [RIGHT, WRONG],
            [
                UnpairedPreference(row=5, prompt=chat("a"), completion="b\nc", label=True, columns=COLUMNS),
                UnpairedPreference(row=6, prompt=chat("a"), completion="b\nd", label=False, columns=COLUMNS),
            ],
        ),
        ([PREFERENCE], [DESIRABLE, replace(UNDESIRABLE, row=5)]),
        ([PREFERENCE], [PREFERENCE]),
    ],
)
def test_conversion_keeps_row_and_columns(records, expected):
    found = convert(records, type(expected[0]).__name__, source="rows")
    assert list(found.records) == expected
    assert not found.dropped


@pytest.mark.parametrize(
    ("records", "reason"),
    [([DESIRABLE, UNDESIRABLE], "answer labelled undesirable"), ([RIGHT, WRONG], "chain with a wrong step")],
)
def test_undesirable_answers_and_wrong_chains_are_dropped_and_counted(records, reason):
    found = convert(records, "Demonstration", source="rows")
    assert len(found.records) == 1
    assert found.dropped == {reason: 1}


def test_pairs_with_equal_sides_make_no_unpaired_preferences():
    same = replace(PREFERENCE, rejected="b\n")
    found = convert([PREFERENCE, same], "UnpairedPreference", source="rows")
    assert (len(found.records), found.dropped) == (2, {"chosen equals rejected": 1})


def test_conversion_error_names_the_missing_side_of_a_pair():
    half = replace(PROMPT, columns={"chosen": "b"})
    with pytest.raises(ConfigError, match=r"has prompts \(with a column chosen, but no column rejected\)"):
        convert([half], "Preference", source="rows.csv")


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (DEMONSTRATION, "Preference",
         "preference pairs (prompt, chosen, rejected), but rows.csv has demonstrations (prompt and completion, or "
         "messages); choose other data, or method=sft, grpo, distill, pretrain"),
        (Text(row=1, text="a"), "Prompt", "prompts, but rows.csv has text; choose other data, or method=pretrain"),
        (replace(PROMPT, columns={}), "Demonstration",
         "demonstrations (prompt and completion, or messages), but rows.csv has prompts; choose other data, or "
         "method=grpo"),
        (replace(DEMONSTRATION, columns={"ok": True}), "UnpairedPreference",
         "labelled answers (prompt, completion, label), but rows.csv has demonstrations (prompt and completion, or "
         "messages); choose other data, or method=sft, grpo, distill, pretrain, or name the columns it needs, of ok: "
         "data.columns.label=NAME"),
    ],
)  # fmt: skip
def test_impossible_conversion_error_names_both_kinds_and_the_methods_that_fit(record, kind, message):
    with pytest.raises(ConfigError) as caught:
        convert([record], kind, source="rows.csv")
    assert str(caught.value) == f"data: this method trains on {message}"
