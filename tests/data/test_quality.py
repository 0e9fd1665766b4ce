"""Quality filters: the rows they drop and their counts."""

from __future__ import annotations

import random
import sys
from collections import Counter
from dataclasses import replace

import pytest

from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.text import Text
from postrain.data.kinds.unpaired_preference import UnpairedPreference
from postrain.data.quality import apply_filters, drop_invalid, repetition
from postrain.errors import ConfigError
from tests.data.helpers import NO_FILTERS, chat


def answers(*texts: str) -> list[Demonstration]:
    return [Demonstration(row=row, messages=chat(f"p{row}", text)) for row, text in enumerate(texts)]


def filter_rows(records, **changes) -> tuple[list[int], dict[str, int]]:
    filtered = apply_filters(records, replace(NO_FILTERS, **changes), seed=0)
    return [record.row for record in filtered.records], dict(filtered.dropped)


def test_default_quality_filter_drops_nothing():
    assert filter_rows(answers("a", "a", "a a a a a a")) == ([0, 1, 2], {})


def test_rows_outside_the_length_limits_are_dropped():
    assert filter_rows(answers("a", "abc", "abcdef"), min_characters=2) == ([1, 2], {"shorter than 2 characters": 1})
    assert filter_rows(answers("a", "abc", "abcdef"), max_characters=3) == ([0, 1], {"longer than 3 characters": 1})


def test_repetition_is_the_share_of_repeated_trigrams():
    # a b c a b c a b: sequences abc bca cab abc bca cab: three of six are repeated.
    assert repetition("a b c a b c a b") == pytest.approx(0.5)
    assert repetition("one two three four") == 0
    assert repetition("two words") == 0
    assert filter_rows(answers("a b c a b c a b", "a b c d"), max_repetition=0.4) == ([1], {"repetition above 0.4": 1})


def test_exact_duplicates_are_dropped_but_opposite_labels_kept():
    same = [Demonstration(row=row, messages=chat("p", text)) for row, text in enumerate("abab")]
    assert filter_rows(same, dedupe=True) == ([0, 1], {"duplicate": 2})
    labelled = [
        UnpairedPreference(row=row, prompt=chat("p"), completion="a", label=label)
        for row, label in enumerate((True, False))
    ]
    assert filter_rows(labelled, dedupe=True) == ([0, 1], {})


def test_near_duplicates_are_dropped():
    rng = random.Random(0)
    words = [f"w{number}" for number in range(500)]
    texts = [" ".join(rng.sample(words, 60)) for _ in range(20)]
    # One word of sixty changed: 3 of 58 three-word sequences differ, Jaccard 55/61 = 0.90.
    near = [text.replace(text.split()[30], "other") for text in texts]
    records = [Text(row=row, text=text) for row, text in enumerate(texts + near)]
    assert filter_rows(records, near_dedupe=0.6) == (list(range(20)), {"near duplicate": 20})
    assert filter_rows(records[:20], near_dedupe=0.6) == (list(range(20)), {})


def test_near_duplicates_without_datasketch_name_the_key_and_the_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(
        ConfigError,
        match=r'^data\.quality\.near_dedupe: the package datasketch .* run pip install "postrain\[quality\]"',
    ):
        filter_rows(answers("a"), near_dedupe=0.8)


@pytest.mark.parametrize("seed", [0, 1])
def test_balance_reduces_every_value_to_the_count_of_the_rarest(seed):
    records = [
        Demonstration(row=row, messages=chat("p", "a"), columns={"task": task})
        for row, task in enumerate("aaaaaabbbcc")
    ]
    filtered = apply_filters(records, replace(NO_FILTERS, balance="task"), seed=seed)
    assert Counter(record.columns["task"] for record in filtered.records) == {"a": 2, "b": 2, "c": 2}
    assert filtered.dropped == {"balance of task": 5}
    assert [record.row for record in filtered.records] == sorted(record.row for record in filtered.records)


def test_balance_works_on_labels_and_refuses_a_missing_column():
    labelled = [UnpairedPreference(row=row, prompt=chat("p"), completion="a", label=row > 0) for row in range(4)]
    assert len(filter_rows(labelled, balance="label")[0]) == 2
    with pytest.raises(
        ConfigError, match=r"row 0: data\.quality\.balance=task: the row has no such column; it has label"
    ):
        filter_rows(labelled, balance="task")


def test_empty_and_contradictory_rows_are_dropped_and_counted():
    records = [
        Preference(row=0, prompt=chat("p"), chosen="a", rejected="b"),
        Preference(row=1, prompt=chat("p"), chosen="a", rejected=" a\n"),
        Preference(row=2, prompt=chat("p"), chosen="a", rejected=" "),
        Demonstration(row=3, messages=chat("p", "\n")),
        Prompt(row=4, prompt=chat("p")),
        Text(row=5, text=" "),
    ]
    found = drop_invalid(records, NO_FILTERS, str)
    assert [record.row for record in found.records] == [0, 4]
    assert found.dropped == {"chosen equals rejected": 1, "empty completion": 3}


def test_empty_completions_can_be_an_error():
    with pytest.raises(ConfigError, match=r"x\.jsonl, line 1: the completion is empty; .*data\.quality\.empty=drop"):
        drop_invalid(answers("a", " "), replace(NO_FILTERS, empty="error"), lambda row: f"x.jsonl, line {row}")
