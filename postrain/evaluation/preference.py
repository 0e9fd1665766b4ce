"""Preference accuracy: whether a language model gives the preferred of two completions the larger log-probability.

Axes: B pairs, T supervised tokens of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from postrain.data.kinds.preference import EncodedPair, Pairs
from postrain.evaluation.completions import asked_text
from postrain.evaluation.likelihood import row_losses
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.types import ConfigError, Count

NEEDED = "needs preference pairs; data=world_preferences has them"


@dataclass(frozen=True, kw_only=True)
class PreferenceAccuracy:
    """The share of held-out pairs in which the chosen completion is the likelier one, ties half, and by how much.

    `accuracy` and `margin` are of summed log-probabilities (DPO's implicit reward is their difference to the
    reference's), `accuracy_per_token` and `margin_per_token` of their means, which do not favour what is short (SimPO).
    """

    pairs: Count = 128
    """Held-out pairs at most."""

    def __call__(self, subject: Subject) -> Finding:
        try:
            data = subject.view("Preference")
        except ConfigError:
            return Finding(metrics={}, notes=(NEEDED,))
        batch = EncodedPair.collate([item for item in data.eval if isinstance(item, EncodedPair)][: self.pairs])
        records = [
            {
                "row": row,
                "accuracy": right(chosen - rejected),
                "margin": chosen - rejected,
                "accuracy_per_token": right(chosen / tokens - rejected / other_tokens),
                "margin_per_token": chosen / tokens - rejected / other_tokens,
            }
            for row, (chosen, tokens), (rejected, other_tokens) in zip(
                batch.row_ids, *logps(subject, batch), strict=True
            )
        ]
        shares = {name: Estimate.share([one[name] for one in records]) for name in ("accuracy", "accuracy_per_token")}
        margins = {name: Estimate.mean([one[name] for one in records]) for name in ("margin", "margin_per_token")}
        return Finding(
            metrics={**shares, **margins},
            example=asked_text(subject, batch.chosen.ids[0]),
            records=tuple(records),
        )


@torch.no_grad()
def logps(subject: Subject, batch: Pairs) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """Summed log-probability and number of tokens of each chosen and of each rejected completion, [B] each."""
    found = [(-loss, max(tokens, 1)) for loss, tokens in row_losses(subject, batch.chosen + batch.rejected)]
    return found[: len(batch)], found[len(batch) :]


def right(margin: float) -> float:
    """1 where the chosen one is ahead, half a point for a tie."""
    return 0.5 if margin == 0 else float(margin > 0)
