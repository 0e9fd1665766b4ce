"""What is kept goes by the rows themselves, in whatever order they come and however often."""

from typing import Any

import torch

from postrain.methods.reference_cache import cache_name, deduplicate, rows_in
from tests.methods.builders import pairs, unpaired_preferences


def test_another_order_of_the_same_items_is_the_same_cache():
    for batch in (pairs(7), unpaired_preferences([True, False, True, True])):
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1)).tolist()
        again = deduplicate(batch.select([*order, order[0]]))
        assert len(again) == len(batch)
        assert cache_name(again, "weights") == cache_name(deduplicate(batch), "weights")
        assert cache_name(again, "weights") != cache_name(again, "other weights")
        assert cache_name(deduplicate(batch.select([0, 1])), "weights") != cache_name(again, "weights")


def test_items_stay_whole():
    batch = pairs(5)
    found = deduplicate(batch)
    assert len(rows_in(found)) == 10
    assert {couple(found, item) for item in range(5)} == {couple(batch, item) for item in range(5)}


def couple(batch: Any, item: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both sides of a pair."""
    return tuple(batch.chosen.ids[item].tolist()), tuple(batch.rejected.ids[item].tolist())
