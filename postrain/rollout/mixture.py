"""Sampling from two models at once: a geometric mixture, each model with its own cache in one decode loop.

Axes: B rows in slots, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from postrain.models.reference import Reference
from postrain.rollout.decode.steppers import Filled, Stepper


class MixtureStepper:
    """Policy and reference side by side, each with its own cache: π^(1−c) · ref^c, up to the constant that drawing
    takes out. Mixing the logits mixes the log-probabilities, at any temperature."""

    def __init__(self, policy: Stepper, theirs: Stepper, reference: Reference, coef: float) -> None:
        self.policy, self.theirs, self.reference, self.coef = policy, theirs, reference, coef
        self.device = policy.device
        self.joins = policy.joins and theirs.joins

    def prefill(self, prompts: Sequence[Tensor]) -> Filled:
        mine = self.policy.prefill(prompts)
        with self.reference.scoring():
            other = self.theirs.prefill(prompts)
        return Filled(self.mixed(mine.logits_PV, other.logits_PV), mine.lengths_P, mine.caches + other.caches)

    def seat(self, filled: Filled, which_B: Tensor, slots_B: Tensor) -> None:
        for stepper, cache in zip((self.policy, self.theirs), filled.caches, strict=True):
            stepper.seat(Filled(filled.logits_PV, filled.lengths_P, (cache,)), which_B, slots_B)

    def move(self, source_B: Tensor, target_B: Tensor, rows: int) -> None:
        self.policy.move(source_B, target_B, rows)
        self.theirs.move(source_B, target_B, rows)

    def step(self, tokens_B: Tensor) -> Tensor:
        mine_BV = self.policy.step(tokens_B)
        with self.reference.scoring():
            return self.mixed(mine_BV, self.theirs.step(tokens_B))

    def mixed(self, mine_BV: Tensor, theirs_BV: Tensor) -> Tensor:
        return torch.lerp(mine_BV.float(), theirs_BV.float(), self.coef)
