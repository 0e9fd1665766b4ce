"""Items in Arrow tables equal the items that were stored, for all kinds."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

from postrain.data import item_store
from postrain.data.encode import Encoded, EncodedRow
from postrain.data.item_store import distinct_ids, read, stored, write
from postrain.data.item_values import Unstorable
from postrain.data.kinds.preference import EncodedPair
from postrain.data.kinds.prompt import EncodedPrompt
from postrain.data.kinds.steps import EncodedSteps
from postrain.data.kinds.unpaired_preference import EncodedUnpairedPreference


def row(number: int, length: int) -> EncodedRow:
    ids = torch.arange(length) * 7 + number
    return EncodedRow(number, ids, ids % 3 == 0)


COLUMNS = {"answer": "4", "gold": {"x": [1, 2.5, None, True]}, "nan": float("nan"), "big": 2**80, "é": "\n"}
ITEMS: dict[str, list[Encoded]] = {
    "demonstration": [row(n, 1 + n % 5) for n in range(7)],
    "pair": [EncodedPair(n, row(n, 3), row(n, 4), n / 3) for n in range(7)],
    "unpaired": [EncodedUnpairedPreference(n, row(n, 3), row(n + 50, 9), label=n % 2 == 0) for n in range(7)],
    "steps": [EncodedSteps(n, row(n, 5), (True,) * n + (False,)) for n in range(7)],
    "prompt": [EncodedPrompt(n, torch.arange(n + 1), f"prompt {n}", COLUMNS if n % 2 else {}) for n in range(7)],
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Encoded):
        values = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
        return type(one) is type(other) and all(same(*pair) for pair in values)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and repr(one) == repr(other)


@pytest.mark.parametrize("kind", ITEMS)
def test_stored_items_equal_the_given_items_in_memory_and_on_disk(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(item_store, "FEW", 2)
    monkeypatch.setattr(item_store, "BATCH", 3)
    items = ITEMS[kind]
    write(tmp_path / "items.arrow", iter(items))
    for found in (stored(iter(items)), read(tmp_path / "items.arrow")):
        assert isinstance(found, item_store.StoredItems)
        assert len(found) == 7
        assert all(same(*pair) for pair in zip(found, items, strict=True))
        assert all(same(found[at], items[at]) for at in (0, 3, 6, -1))
        assert same(found[2:5][2], items[4])
        assert b"".join(item.signature() for item in found) == b"".join(item.signature() for item in items)
        assert distinct_ids(found) == distinct_ids(items)


def test_few_items_are_kept_as_they_are():
    items = tuple(ITEMS["pair"])
    assert all(one is other for one, other in zip(stored(iter(items)), items, strict=True))


@dataclass(frozen=True)
class OtherItem(EncodedRow):
    extra: object = None


@pytest.mark.parametrize(
    "odd",
    [
        OtherItem(9, torch.arange(2), torch.ones(2, dtype=torch.bool), {1, 2}),
        EncodedPrompt(9, torch.arange(2), "a", {"x": {1: "not text"}}),
        EncodedPrompt(9, torch.arange(2), "a", {"x": (1, 2)}),
    ],
)
def test_values_that_a_table_would_change_stay_in_memory_and_are_not_written(odd, tmp_path, monkeypatch):
    monkeypatch.setattr(item_store, "FEW", 1)
    assert stored(iter([odd, odd]))[1] is odd
    with pytest.raises(Unstorable):
        write(tmp_path / "items.arrow", iter([odd]))


def test_no_items_are_written_and_read(tmp_path):
    write(tmp_path / "items.arrow", iter(()))
    assert len(read(tmp_path / "items.arrow")) == 0
