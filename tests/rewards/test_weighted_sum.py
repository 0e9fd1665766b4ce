"""base.py: weighted sums with missing parts, and the pre-flight check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.rewards.base import WeightedSum, nan_to_none, none_to_nan, preflight
from postrain.types import RewardBatch


@dataclass
class Fixed:
    """A reward with fixed scores for any completion."""

    values: tuple[float | None, ...]
    inner: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    device: str = "cpu"

    def to(self, device: torch.device | str) -> None:
        self.device = str(device)

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Sequence[Mapping[str, Any]]
    ) -> RewardBatch:
        return RewardBatch(none_to_nan(self.values), self.inner or {"fixed": self.values})


def test_weighted_sum_with_missing_parts() -> None:
    first, second = Fixed((1.0, 2.0, None, None)), Fixed((10.0, None, 30.0, None), {"a": (1.0,) * 4, "b": (2.0,) * 4})
    rewards = WeightedSum(parts={"first": first, "second": second}, weights={"first": 2.0, "second": -0.5})("", "", ())
    # 2·1 - 0.5·10 = -3;  2·2 + None = 4;  None - 0.5·30 = -15;  None
    assert nan_to_none(rewards.total_B) == (-3.0, 4.0, -15.0, None)
    assert rewards.parts == {
        "first": (1.0, 2.0, None, None),
        "second": (10.0, None, 30.0, None),
        "second/a": (1.0,) * 4,
        "second/b": (2.0,) * 4,
    }


def test_missing_part_counts_as_zero() -> None:
    parts = {"judge": Fixed((None, 1.0)), "length": Fixed((2.0, 3.0))}
    rewards = WeightedSum(parts=parts, weights={"judge": 0.0, "length": 1.0})("", "", ())
    assert nan_to_none(rewards.total_B) == (2.0, 3.0)
    with pytest.raises(ConfigError, match=r"reward.weights.judge: expected a finite number, got nan"):
        WeightedSum(parts=parts, weights={"judge": float("nan"), "length": 1.0})


def test_to_device_moves_the_parts() -> None:
    part = Fixed((1.0,))
    WeightedSum(parts={"part": part}, weights={"part": 1.0}).to("meta")
    assert part.device == "meta"


def test_every_part_needs_a_weight() -> None:
    with pytest.raises(ConfigError, match=r"one weight for each of reward.parts \(a\), got b"):
        WeightedSum(parts={"a": Fixed((1.0,))}, weights={"b": 1.0})


@pytest.mark.parametrize("values", [(1.0, 2.0), (1.0,), (0.0, None, 1e-6)])
def test_preflight_accepts_different_rewards_and_a_single_one(values: tuple[float | None, ...]) -> None:
    preflight(none_to_nan(values))


def test_preflight_refuses_a_constant() -> None:
    with pytest.raises(ConfigError, match=r"all 3 pre-flight completions scored .*, and a constant"):
        preflight(none_to_nan((0.5, None, 0.5, 0.5)))


def test_preflight_refuses_missing_rewards() -> None:
    with pytest.raises(ConfigError, match="none of the 2 pre-flight completions could be scored"):
        preflight(none_to_nan((None, None)))


def test_preflight_refuses_infinity() -> None:
    with pytest.raises(ConfigError, match="scored infinity"):
        preflight(none_to_nan((1.0, float("-inf"))))
