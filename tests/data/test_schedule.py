"""The schedule: the items of each batch, by epoch, seed and rank."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from postrain.data.encode import EncodedRow
from postrain.data.schedule import DataSpec, TrainBatches
from postrain.types import Rows


def schedule(items: int, **changes: int) -> TrainBatches:
    rows = [EncodedRow(row, torch.full((3,), row), torch.tensor([False, True, True])) for row in range(items)]
    return replace(TrainBatches(items=rows, batch_size=4, updates=9, seed=0), **changes)


def row_ids(batches: TrainBatches) -> list[tuple[int, ...]]:
    found = []
    for batch in batches:
        assert isinstance(batch, Rows)
        found.append(batch.row_ids)
    return found


@pytest.mark.parametrize(
    ("epochs", "count", "updates"),
    [(3, 1000, 94), (1, 32, 1), (1, 33, 2), (0.1, 960, 3), (1 / 3, 96, 1), (None, 96, 7)],  # 3 · 1000 / 32 = 93.75
)
def test_passes_over_the_rows_are_updates_rounded_up(epochs, count, updates):
    spec = DataSpec("Demonstration", 512, 0, batch_size=32, updates=7, seed=0, num_train_epochs=epochs)
    assert spec.of_items(count).updates == updates


def test_epochs_are_complete_batches_full_and_orders_different():
    rng = random.Random(0)
    for _ in range(40):
        items, size = rng.randint(1, 30), rng.randint(1, 40)
        batches = row_ids(schedule(items, batch_size=size, updates=12, seed=rng.randint(0, 9)))
        assert [len(batch) for batch in batches] == [size] * 12
        stream = [row for batch in batches for row in batch]
        epochs = [stream[at : at + items] for at in range(0, len(stream) - items + 1, items)]
        assert all(sorted(epoch) == list(range(items)) for epoch in epochs)
        if items > 8 and len(epochs) > 1:
            assert epochs[0] != epochs[1]


@pytest.mark.parametrize("start", [0, 1, 5, 9])
def test_schedule_started_later_gives_the_remaining_batches(start):
    whole = row_ids(schedule(10))
    rest = schedule(10, start=start)
    assert row_ids(rest) == whole[start:]
    assert len(rest) == 9 - start


def test_batch_does_not_depend_on_the_number_of_updates():
    assert row_ids(schedule(10, updates=3)) == row_ids(schedule(10))[:3]


def test_order_depends_on_the_seed():
    assert row_ids(schedule(10)) != row_ids(schedule(10, seed=1))


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_share_a_global_batch(ranks):
    parts = [row_ids(schedule(10, rank=rank, ranks=ranks)) for rank in range(ranks)]
    for update, whole in enumerate(row_ids(schedule(10))):
        shares = [part[update] for part in parts]
        assert sorted(row for share in shares for row in share) == sorted(whole)
        assert max(map(len, shares)) - min(map(len, shares)) <= 1
