"""How much fresh completions say again, each other and themselves, as a measure; repetition.py has the numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from postrain.data.repetition import distinct_n, loop_share, ngrams
from postrain.evaluation.completions import complete, first_prompt
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.evaluation.scores import written
from postrain.types import Count

ORDERS = (1, 2, 3)
CAUGHT = 0.5
"""Share of its words in one loop from which a completion counts as looping."""


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """`distinct_1` to `distinct_3` over all sampled completions, the mean `loop_share` of a completion's words, and
    the share of completions that are `looping`: half of their words or more stand in one loop."""

    prompts: Count = 64
    """Held-out prompts at most; one completion each."""

    def __call__(self, subject: Subject) -> Finding:
        rollouts = complete(subject, self.prompts)
        texts = rollouts.completions
        loops = [loop_share(text) for text in texts]
        looping = [share >= CAUGHT for share in loops]
        records = [{"loop_share": share, "looping": caught} for share, caught in zip(loops, looping, strict=True)]
        return Finding(
            metrics={
                **{f"distinct_{n}": distinct(texts, n) for n in ORDERS},
                "loop_share": Estimate.mean(loops, 0, 1),
                "looping": Estimate.share(looping),
            },
            example=first_prompt(subject, rollouts),
            records=written(rollouts, records),
        )


def distinct(texts: Sequence[str], n: int) -> Estimate:
    """distinct-n of a set of texts; the interval is a jackknife's, since a text drawn twice would lower the number."""
    runs = [Counter(ngrams(text.split(), n)) for text in texts]
    everywhere = sum(runs, Counter())
    total, kinds = sum(everywhere.values()), len(everywhere)
    without = []
    for own in runs:
        # What only this text says goes with it.
        lost = sum(everywhere[run] == count for run, count in own.items())
        left = total - sum(own.values())
        without.append((kinds - lost) / left if left else 1.0)
    return Estimate.jackknife(distinct_n(texts, n), without, 0, 1)
