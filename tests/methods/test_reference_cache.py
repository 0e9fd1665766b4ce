"""The name of a cache of reference log-probabilities depends on the set of rows and the weights, not on their order."""

from typing import Any

import torch

from postrain.methods.reference_cache import cache_name, deduplicate, rows_in
from tests.methods.builders import pairs, unpaired_preferences


def test_cache_name_ignores_order_and_repetition():
    for batch in (pairs(7), unpaired_preferences([True, False, True, True])):
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1)).tolist()
        shuffled = deduplicate(batch.select([*order, order[0]]))
        assert len(shuffled) == len(batch)
        assert cache_name(shuffled, "weights") == cache_name(deduplicate(batch), "weights")
        assert cache_name(shuffled, "weights") != cache_name(shuffled, "other weights")
        assert cache_name(deduplicate(batch.select([0, 1])), "weights") != cache_name(shuffled, "weights")


def test_deduplicate_keeps_pairs_together():
    batch = pairs(5)
    found = deduplicate(batch)
    assert len(rows_in(found)) == 10
    assert {pair_ids(found, item) for item in range(5)} == {pair_ids(batch, item) for item in range(5)}


def pair_ids(batch: Any, item: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of both completions of a pair."""
    return tuple(batch.chosen.ids[item].tolist()), tuple(batch.rejected.ids[item].tolist())
