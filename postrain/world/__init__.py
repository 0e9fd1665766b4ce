"""The bundled synthetic world: facts, sums, stories and instructions with known gold answers, in every data format."""

from __future__ import annotations

from postrain.world.gold import score
from postrain.world.rows import rows

__all__ = ["rows", "score"]
