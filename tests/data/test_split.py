"""Training and held-out rows share no prompt."""

from __future__ import annotations

import random

import pytest

from postrain.data.kinds.demonstration import Demonstration
from postrain.data.reading import SEEN, SPARE, split, unseen
from postrain.data.records import Record
from postrain.types import ConfigError
from tests.data.helpers import chat


def rows(prompts: list[int]) -> list[Record]:
    return [Demonstration(row=row, messages=chat(f"p{prompt}", f"a{row}")) for row, prompt in enumerate(prompts)]


def test_a_fraction_of_the_prompts_is_held_out_with_all_their_rows():
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
        assert parts.dropped == {SPARE: 0}


def test_a_tenth_of_forty_prompts_is_four_and_never_more_than_asked_for():
    records = rows(list(range(40)))
    assert len(split(records, fraction=0.1, eval_rows=99, seed=0, source="x").held_out) == 4
    few = split(records, fraction=0.5, eval_rows=3, seed=0, source="x")
    assert (len(few.held_out), len(few.train)) == (3, 37)


def test_the_split_is_the_seeds_and_not_the_orders():
    records = rows(list(range(40)))
    held_out = {record.row for record in split(records, fraction=0.2, eval_rows=99, seed=0, source="x").held_out}
    again = split(records[::-1], fraction=0.2, eval_rows=99, seed=0, source="x").held_out
    assert held_out == {record.row for record in again}
    other = split(records, fraction=0.2, eval_rows=99, seed=1, source="x").held_out
    assert held_out != {record.row for record in other}


def test_one_prompt_cannot_be_split():
    with pytest.raises(ConfigError, match=r"x\.jsonl: 1 different prompts are too few.*data\.eval_path"):
        split(rows([3, 3, 3]), fraction=0.1, eval_rows=9, seed=0, source="x.jsonl")


def test_held_out_rows_that_training_gives_away_are_left_out():
    parts = unseen(rows([1, 2]), rows([2, 3, 4]), eval_rows=1, source="x")
    assert [record.prompt_content() for record in parts.held_out] == ["p3"]
    assert parts.dropped == {SEEN: 1, SPARE: 1}
    with pytest.raises(ConfigError, match=r"every held-out row has a prompt that is also in training"):
        unseen(rows([1, 2]), rows([2]), eval_rows=1, source="x")
