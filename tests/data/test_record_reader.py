"""RecordReader: unused columns, dropped rows, max_rows and the split."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from postrain.data.conversation import Message, transcript
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.unpaired_preference import UnpairedPreferences
from postrain.data.record_reader import OVERLAP, SURPLUS, RecordReader, RowCounts, drop_overlap, split
from postrain.data.records import Record
from postrain.data.schedule import EvalBatches
from postrain.errors import ConfigError
from tests.data.helpers import NO_FILTERS, chat, table, write_lines
from tests.data.modules import prepared

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2, "id": 1}
CONVERSATION = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 1}


def read(row: dict[str, Any], kind: str, **changes: Any) -> tuple[tuple[Record, ...], RowCounts]:
    settings: dict[str, Any] = {"columns": {}, "quality": NO_FILTERS, "loss_on": "completion", "known": frozenset()}
    counts = RowCounts()
    return RecordReader(kind=kind, **(settings | changes)).records(table([row, row]), counts), counts


@pytest.mark.parametrize(
    ("row", "kind", "unused"),
    [
        (PAIR, "Preference", {"id", "margin"}),
        (PAIR, "Demonstration", {"id", "rejected", "margin"}),
        (PAIR, "UnpairedPreference", {"id", "margin"}),
        (PAIR, "Prompt", {"chosen", "rejected", "margin"}),
        (CONVERSATION, "Demonstration", {"id"}),
        (CONVERSATION, "Prompt", {"completion"}),
        ({"prompt": "a", "completion": "b", "label": True}, "Demonstration", set()),
        ({"prompt": "a", "completion": "b", "label": True}, "Prompt", {"completion", "label"}),
        # The answer to a question is kept as a reward column.
        ({"question": "a", "answer": "b"}, "Prompt", set()),
        ({"question": "a", "answer": "b"}, "Demonstration", set()),
        ({"prompt": "a", "answer": "b"}, "Prompt", set()),
    ],
)
def test_columns_unused_by_a_kind_are_named(row, kind, unused):
    _, counts = read(row, kind)
    assert set(counts.unused) == unused
    assert not counts.dropped


def test_columns_read_elsewhere_are_not_listed_as_unused():
    _, counts = read({**PAIR, "gold": {"x": 1}}, "Preference", known=frozenset({"margin", "gold"}))
    assert counts.unused == {"id": 2}


def test_chain_as_an_answer_has_the_joiner_of_the_layout_between_its_steps():
    row = {"prompt": "a", "steps": ["1 + 2 = 3.", "3 + 3 = 6."], "labels": [True, True]}
    for kind in ("Demonstration", "UnpairedPreference"):
        (record, _), _ = read(row, kind, joiner="\n\n- ")
        assert record.completions() == ("- 1 + 2 = 3.\n\n- 3 + 3 = 6.",)


@pytest.mark.parametrize(
    ("row", "kind", "content"),
    [
        ({"prompt": "a</s>", "completion": "b</s>\n"}, "Demonstration", ("a</s>", "b")),
        ({"prompt": "a", "completion": "b <|end|></s>"}, "Demonstration", ("a", "b ")),
        ({"prompt": "a", "chosen": "b</s>", "rejected": "</s> c"}, "Preference", ("a", "b", "</s> c")),
        ({"prompt": "a", "completion": "b</s>", "label": True}, "UnpairedPreference", ("a", "b")),
        ({"prompt": "a", "steps": ["b", "c</s>"], "labels": [True, True]}, "Demonstration", ("a", "b\nc")),
        ({"text": "b<|end|></s>"}, "Text", ("b<|end|>",)),
    ],
)
def test_end_token_at_the_end_of_an_answer_is_removed_and_counted(row, kind, content):
    records, counts = read(row, kind, ends=("<|end|>", "</s>"), eos="</s>")
    assert records[0].content() == content
    assert counts.repaired == {"end token in the text removed": 2}
    assert read(row, kind)[1].repaired == {}


def test_end_token_is_removed_from_earlier_answers_and_from_the_reference_of_rewards():
    turns = [{"role": role, "content": f"{role}</s>"} for role in ("user", "assistant", "user", "assistant")]
    (record, _), _ = read({"messages": turns}, "Demonstration", ends=("</s>",))
    assert record.content() == ("user</s>", "assistant", "user</s>", "assistant")
    (record, _), _ = read({"question": "a", "answer": "3</s>"}, "Prompt", ends=("</s>",))
    assert record.columns == {"answer": "3", "solution": "3"}


def test_answer_that_is_an_end_token_alone_is_empty():
    with pytest.raises(ConfigError, match="no row can be used: 2 empty completion"):
        read({"prompt": "a", "completion": "</s>"}, "Demonstration", ends=("</s>",))


def test_columns_of_prompts_are_available_to_rewards():
    _, counts = read({"prompt": "a", "answer": "b", "level": 3, "none": None}, "Prompt")
    assert list(counts.offered) == ["answer", "level", "none"]
    assert not counts.unused


def weighted_conversation(*weights: int) -> dict[str, Any]:
    turns = [[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": w}] for w in weights]
    return {"messages": [message for turn in turns for message in turn]}


@pytest.mark.parametrize(("loss_on", "weights"), [("completion", (1, 0)), ("assistant", (0, 0)), ("all", (0,))])
def test_conversations_without_an_answer_in_the_loss_are_dropped_and_counted(loss_on, weights):
    with pytest.raises(ConfigError, match=r"rows\.jsonl: no row can be used: 2 answer of weight 0"):
        read(weighted_conversation(*weights), "Demonstration", loss_on=loss_on)
    records, counts = read(weighted_conversation(0, 1), "Demonstration", loss_on=loss_on)
    assert (len(records), counts.dropped[""]) == (2, 0)


def test_running_text_cannot_hold_an_answer_of_weight_zero():
    with pytest.raises(ConfigError, match="2 answer of weight 0, which running text cannot hold"):
        read(weighted_conversation(0, 1), "Text")


def test_error_of_missing_answers_lists_the_candidate_columns():
    with pytest.raises(ConfigError, match=r"the columns it needs, of target, id: data\.columns\.completion=NAME"):
        read({"prompt": "a", "target": "b", "id": 1}, "Demonstration")


def test_at_most_max_rows_are_read(tmp_path):
    rows = [{"prompt": f"p {number}", "completion": f"c {number}", "tag": number} for number in range(30)]
    path = f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}"
    data = prepared("jsonl", path, "data.max_rows=20")
    assert (data.audit.rows_read, data.audit.rows_train + data.audit.rows_eval) == (20, 20)
    assert data.audit.unused == {"tag": 20}
    held_out = f"data.eval_path={write_lines(tmp_path / 'y.jsonl', [{**row, 'prompt': 'other'} for row in rows])}"
    data = prepared("jsonl", path, held_out, "data.max_rows=20")
    assert (data.audit.rows_train, data.audit.rows_eval) == (20, 6)
    assert prepared("jsonl", path, "data.max_rows=99").audit.rows_read == 30


def test_held_out_unpaired_preferences_with_one_completion_are_paired_with_training_rows(tmp_path):
    rows = [{"prompt": f"p {n}", "completion": ("bad", "good")[n % 2], "label": bool(n % 2)} for n in range(20)]
    held_out = [{"prompt": f"q {n}", "completion": "good", "label": True} for n in range(3)]
    paths = [str(write_lines(tmp_path / name, part)) for name, part in (("x.jsonl", rows), ("y.jsonl", held_out))]
    data = prepared("jsonl", f"data.path={paths[0]}", f"data.eval_path={paths[1]}", kind="UnpairedPreference")
    (batch,) = EvalBatches(data.eval, 4)
    assert isinstance(batch, UnpairedPreferences)
    assert len(batch) == 3
    assert data.records.held_out[0].row == 1
    assert json.dumps(data.audit.to_dict()["unused"]) == "{}"


def test_margin_is_unused_unless_the_method_reads_it(tmp_path):
    rows = [{**PAIR, "prompt": f"p {number}"} for number in range(12)]
    path = f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}"
    for use_margin, unused in ((True, {"id": 12}), (False, {"id": 12, "margin": 12})):
        assert prepared("jsonl", path, kind="Preference", use_margin=use_margin).audit.unused == unused
    assert chat("p 1") in [
        getattr(record, "prompt", None) for record in prepared("jsonl", path, kind="Preference").records.train
    ]


def rows(prompts: list[int]) -> list[Record]:
    return [Demonstration(row=row, messages=chat(f"p{prompt}", f"a{row}")) for row, prompt in enumerate(prompts)]


def test_fraction_of_the_prompts_is_held_out_with_all_their_rows():
    rng = random.Random(0)
    for _ in range(50):
        records = rows([rng.randint(0, 30) for _ in range(rng.randint(2, 60))])
        if len({record.prompt_content() for record in records}) < 2:
            continue
        parts = split(records, fraction=rng.uniform(0.01, 0.99), eval_rows=999, seed=rng.randint(0, 9), source="x")
        train, held_out = ({record.prompt_content() for record in part} for part in (parts.train, parts.held_out))
        assert train
        assert held_out
        assert not train & held_out
        assert len(parts.train) + len(parts.held_out) == len(records)
        assert parts.dropped == {SURPLUS: 0}


def test_split_holds_out_the_fraction_and_at_most_eval_rows():
    records = rows(list(range(40)))
    assert len(split(records, fraction=0.1, eval_rows=99, seed=0, source="x").held_out) == 4
    few = split(records, fraction=0.5, eval_rows=3, seed=0, source="x")
    assert (len(few.held_out), len(few.train)) == (3, 37)


def test_split_depends_on_the_seed_and_not_on_row_order():
    records = rows(list(range(40)))
    held_out = {record.row for record in split(records, fraction=0.2, eval_rows=99, seed=0, source="x").held_out}
    again = split(records[::-1], fraction=0.2, eval_rows=99, seed=0, source="x").held_out
    assert held_out == {record.row for record in again}
    other = split(records, fraction=0.2, eval_rows=99, seed=1, source="x").held_out
    assert held_out != {record.row for record in other}


def test_split_of_one_prompt_is_refused():
    with pytest.raises(ConfigError, match=r"x\.jsonl: one prompt is too few.*data\.eval_path"):
        split(rows([3, 3, 3]), fraction=0.1, eval_rows=9, seed=0, source="x.jsonl")


def test_eval_rows_that_occur_in_training_are_dropped():
    parts = drop_overlap(rows([1, 2]), rows([2, 3, 4]), eval_rows=1, source="x")
    assert [record.prompt_content() for record in parts.held_out] == ["p3"]
    assert parts.dropped == {OVERLAP: 1, SURPLUS: 1}
    with pytest.raises(ConfigError, match=r"every held-out row has a prompt that is also in training"):
        drop_overlap(rows([1, 2]), rows([2]), eval_rows=1, source="x")


def test_conversations_with_the_same_first_message_are_held_out_together():
    short = [Demonstration(row=n, messages=chat(f"q{n}", f"a{n}")) for n in range(40)]
    long = [Demonstration(row=40 + n, messages=chat(f"q{n}", f"a{n}", f"r{n}", f"b{n}")) for n in range(40)]
    # an instruction at the beginning of more conversations than are held out is not their question
    told = [Demonstration(row=80 + n, messages=chat("Play.", "Yes", f"s{n}", f"c{n}")) for n in range(20)]
    parts = split([*short, *long, *told], fraction=0.15, eval_rows=99, seed=0, source="x")
    assert len(parts.held_out) == 15  # of 100 prompts
    held_out = {record.row for record in parts.held_out}
    assert {row - 40 for row in held_out if 40 <= row < 80} == {row for row in held_out if row < 40}
    assert 0 < sum(row >= 80 for row in held_out) < 20
    assert not parts.dropped[SURPLUS]


HH_TURN = "\n\nAssistant: a\n\nHuman: r"


@pytest.mark.parametrize("system", ["", "s"])
def test_opening_ends_with_the_first_user_message_also_in_transcripts(system):
    before = (Message("system", system),) if system else ()
    one, two = (Prompt(row=0, prompt=(*before, *chat(*turns))) for turns in (("q",), ("q", "a", "r")))
    assert one.opening() == two.opening() == ("s\n\nq" if system else "q")
    one, two = (Prompt(row=0, prompt=transcript(f"\n\nHuman: q{more}\n\nAssistant:")) for more in ("", HH_TURN))
    assert one.opening() == two.opening() == "\n\nHuman: q\n\nAssistant:"


def test_split_of_single_turns_does_not_change():
    """The reports of earlier runs are compared by their held-out rows."""
    records = rows(list(range(40)))
    found = [
        sorted(record.row for record in split(records, fraction=0.1, eval_rows=99, seed=seed, source="x").held_out)
        for seed in (0, 1)
    ]
    assert found == [[0, 25, 29, 38], [6, 11, 19, 20]]
