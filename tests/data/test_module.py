"""The data module: bad files, splits, truncation, and the batches of each rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from lightning.pytorch import Trainer

from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.text import beginning
from postrain.data.kinds.unpaired_preference import UnpairedPreference, UnpairedPreferences
from postrain.data.module import DataModule
from postrain.errors import ConfigError
from postrain.types import Rows
from tests.data.helpers import write_lines
from tests.data.modules import DEMONSTRATIONS, prepared


def test_training_and_held_out_rows_share_no_prompt(data_path):
    data = prepared("jsonl", data_path, "data.eval_fraction=0.2")
    assert (len(data.train), len(data.eval)) == (24, 6)
    trained, held_out = (
        {record.prompt_content() for record in part} for part in (data.records.train, data.records.held_out)
    )
    assert not trained & held_out


def test_row_tokens_are_those_of_the_longest_prompt_with_its_completion(data_path):
    data = prepared("jsonl", data_path, "data.eval_fraction=0.2", kind="Prompt", completion_tokens=100)
    longest = max(len(item.sequences()[0]) for part in (data.train, data.eval) for item in part)
    assert data.row_tokens() == longest + 100
    assert prepared("jsonl", data_path, kind="Prompt", completion_tokens=500).row_tokens() == 512  # nano's context


@pytest.mark.parametrize("empty", ["drop", "error"])
@pytest.mark.parametrize("nothing", ["", None])
def test_empty_completions_are_dropped_or_refused(empty, nothing, tmp_path):
    rows = [*DEMONSTRATIONS, {"prompt": "q", "completion": nothing}]
    path = write_lines(tmp_path / "x.jsonl", rows)
    if empty == "drop":
        assert prepared("jsonl", f"data.path={path}").audit.dropped == {"empty completion": 1}
    else:
        with pytest.raises(ConfigError, match=r"x\.jsonl, line 31: the completion is empty"):
            prepared("jsonl", f"data.path={path}", "data.quality.empty=error")


def test_answers_that_end_with_the_end_token_are_encoded_as_those_without(tmp_path):
    ended = [{**row, "completion": f"{row['completion']}<|end|>"} for row in DEMONSTRATIONS]
    paths = [write_lines(tmp_path / f"{len(rows[0]['completion'])}.jsonl", rows) for rows in (DEMONSTRATIONS, ended)]
    plain, repaired = (prepared("jsonl", f"data.path={path}").audit for path in paths)
    assert plain.fingerprint == repaired.fingerprint
    assert (plain.repaired, repaired.repaired) == ({}, {"end token in the text removed": len(ended)})


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LABELLED = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b'{"prompt": "a"\n', "Prompt", "line 1: not valid JSON"),
        (lines({"prompt": "a", "completion": "b"}, {"prompt": "a"}), "Demonstration", "line 2: the column completion"),
        (lines({"frage": "a"}), "Prompt", "the columns frage; expected for example"),
        (
            lines({"prompt": "a", "completion": "b", "label": 2}),
            "UnpairedPreference",
            "line 1: label has to be true or false",
        ),
        (b'{"prompt": "\xff"}\n', "Prompt", "line 1: not UTF-8"),
        (b"", "Prompt", "is empty"),
        (lines({"prompt": "a", "completion": " "}), "Demonstration", "no row can be used: 1 empty completion"),
        (lines({**PAIR, "rejected": "b"}), "Preference", "no row can be used: 1 chosen equals rejected"),
        (
            lines(LABELLED, {**LABELLED, "label": "up?"}),
            "UnpairedPreference",
            "line 2: label .* got 'up\\?'; convert the column, or correct or remove",
        ),
        (lines({**PAIR, "rejected": "b "}), "UnpairedPreference", "no row can be used: 1 chosen equals rejected"),
        (lines(PAIR, {"prompt": "a", "chosen": "b"}), "Preference", "line 2: the column rejected is missing"),
        (lines({"prompt": "a", "chosen": "b"}), "Preference", "with a column chosen, but no column rejected"),
        (lines(LABELLED), "Preference", r"trains on preference pairs \(.*\), but .* has labelled answers"),
        (lines(PAIR), "Preference", "one prompt is too few"),
    ],
)
def test_bad_data_is_a_one_line_error_with_the_file_name(content, kind, message, tmp_path):
    (tmp_path / "bad.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        prepared("jsonl", f"data.path={tmp_path / 'bad.jsonl'}", kind=kind)
    assert "bad.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pairs_with_equal_sides_are_dropped_and_printed(tmp_path):
    rows = [{**PAIR, "prompt": str(n)} for n in range(9)] + [{**PAIR, "rejected": "b"}]
    data = prepared("jsonl", f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}", kind="Preference")
    assert data.audit.dropped == {"chosen equals rejected": 1}
    assert "1 chosen equals rejected" in data.audit.render()


def test_pairs_as_unpaired_preferences_stay_in_one_split_and_empty_ones_are_counted(tmp_path):
    rows = [{**PAIR, "prompt": f"p{n}", "chosen": f"up {n}", "rejected": f"down {n}"} for n in range(10)]
    rows += [
        {**rows[0], "prompt": "empty side", "rejected": " "},
        {**rows[1], "prompt": "no prefix", "chosen": "down 1"},
    ]
    path = write_lines(tmp_path / "x.jsonl", rows)
    data = prepared(
        "jsonl", f"data.path={path}", "data.eval_fraction=0.3", "data.eval_rows=20", kind="UnpairedPreference"
    )
    assert data.audit.dropped == {"empty completion": 1, "chosen equals rejected": 1}
    for part in (data.records.train, data.records.held_out):
        labels = {record.prompt_content(): [] for record in part}
        for record in part:
            assert isinstance(record, UnpairedPreference)
            labels[record.prompt_content()].append(record.label)
        assert all(both == [True, False] for prompt, both in labels.items() if prompt != "empty side")
    assert "desirable" in data.audit.render()


def test_kto_pairing_does_not_depend_on_the_batch_size(tmp_path):
    rows = [{**row, "label": n % 3 > 0} for n, row in enumerate(DEMONSTRATIONS)]
    path = f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}"
    found = []
    for size in (1, 5, 8):
        unrelated = {}
        for batch in prepared(
            "jsonl", path, kind="UnpairedPreference", batch_size=size, updates=40 // size
        ).train_dataloader():
            assert isinstance(batch, UnpairedPreferences)
            assert len(batch.unrelated) == len(batch.rows) == len(batch.label_B) == size
            rows = [tuple(ids.tolist()) for ids in batch.rows.ids]
            unrelated |= dict(zip(rows, (tuple(ids.tolist()) for ids in batch.unrelated.ids), strict=True))
        found.append(unrelated)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == len({tuple(sorted(row.items())) for row in DEMONSTRATIONS}) - 3


def test_prompts_longer_than_the_context_are_truncated_counted_and_printed(tmp_path):
    rows = [{"prompt": f"{n} " + "what is this " * 40} for n in range(9)]
    data = prepared("jsonl", f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}", kind="Prompt", context=64)
    assert all(cost == 64 - 16 for batch in data.train_dataloader() for cost in batch.cost())
    assert data.audit.cut == {"prompt cut on the left": 9}
    assert "9 prompt cut on the left" in data.audit.render()
    assert all(len(ids) == 48 for ids in data.eval_prompts(9).ids)


def test_lengths_that_do_not_fit_the_model_are_refused(data_path):
    with pytest.raises(ConfigError, match=r"data\.max_length=600: the model has a context of 512"):
        prepared("jsonl", data_path, "data.max_length=600")
    with pytest.raises(ConfigError, match=r"rollout\.max_new_tokens=512 fills the model's context"):
        prepared("jsonl", data_path, kind="Prompt", completion_tokens=512)


def test_filters_that_drop_every_row_list_the_reasons(data_path):
    with pytest.raises(ConfigError, match=r"no training row is left: 27 shorter than 999 characters; loosen"):
        prepared("jsonl", data_path, "data.quality.min_characters=999", "data.eval_rows=3")


def test_prompts_of_several_turns_are_also_given_as_messages(tmp_path):
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "So"},
    ]
    rows = [{"prompt": [{**turns[0], "content": f"Hi {n}"}, *turns[1:]]} for n in range(9)]
    path = f"data.path={write_lines(tmp_path / 'x.jsonl', rows)}"
    data = prepared("jsonl", path, kind="Prompt")
    prompts = data.eval_prompts(1)
    assert prompts.columns[0]["messages"][1:] == turns[1:]
    assert prompts.texts[0].endswith("\n\nYes?\n\nSo")
    assert isinstance(data.records.train[0], Prompt)


def row_ids(data: DataModule) -> list[tuple[int, ...]]:
    return [batch.row_ids for batch in data.train_dataloader() if isinstance(batch, Rows)]


def trainer(ranks: int, rank: int) -> Trainer:
    """The attributes that the loader reads, of a trainer after one update."""
    method = SimpleNamespace(counters=SimpleNamespace(updates=1))
    return cast(Trainer, SimpleNamespace(lightning_module=method, world_size=ranks, global_rank=rank))


def test_train_dataloader_gives_the_remaining_batches_of_the_rank(data_path):
    data = prepared("jsonl", data_path)
    whole = row_ids(data)
    for rank in (0, 1):
        data.trainer = trainer(2, rank)
        assert row_ids(data) == [ids[rank::2] for ids in whole[1:]]
    data.trainer = trainer(5, 0)
    with pytest.raises(ConfigError, match=r"method\.batch_size=4: 5 ranks need at least 5 rows"):
        data.train_dataloader()
    data.trainer = None
    data.start_update = 2
    assert row_ids(data) == whole[2:]


def test_fingerprint_depends_on_rows_and_split_on_the_seed(data_path):
    one, again, other = (prepared("jsonl", data_path, seed=seed).audit.fingerprint for seed in (0, 0, 1))
    assert one == again != other


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("It rained. She left.", "It rained."),
        ("Is it 3.5? Yes.", "Is it 3.5?"),
        ("one two three four", "one two"),
        ("Alone.", "Alone."),
        ("What is this", "What"),
    ],
)
def test_eval_prompt_of_running_text_is_its_beginning(text, start):
    assert beginning(text) == start


def test_all_file_formats_give_the_same_batches(tmp_path: Path):
    def fingerprint(name: str, write: Sequence[Any]) -> str:
        path = tmp_path / name
        path.write_text(write[0])
        return prepared("jsonl", f"data.path={path}").audit.fingerprint

    as_csv = "prompt,completion\n" + "".join(f"{row['prompt']},{row['completion']}\n" for row in DEMONSTRATIONS)
    found = {
        fingerprint("x.jsonl", [lines(*DEMONSTRATIONS).decode()]),
        fingerprint("x.json", [json.dumps(DEMONSTRATIONS)]),
        fingerprint("x.csv", [as_csv]),
    }
    assert len(found) == 1


def test_pairs_equal_after_truncation_are_dropped_and_counted(tmp_path):
    same, answers = "no " * 40, ("yes", "never")
    rows = [{"prompt": f"Is it {n}?", "chosen": same + answers[n % 2], "rejected": same + "maybe"} for n in range(20)]
    rows += [{"prompt": f"Was it {n}?", "chosen": "yes", "rejected": "no"} for n in range(20)]
    path = write_lines(tmp_path / "pairs.jsonl", rows)
    data = prepared("jsonl", f"data.path={path}", "data.max_length=24", kind="Preference")
    assert len(data.train) + len(data.eval) == 20
    assert data.audit.dropped["chosen equals rejected once cut"] == 20
