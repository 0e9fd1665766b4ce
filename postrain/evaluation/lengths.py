"""How long fresh completions are, and how many come to an end by themselves."""

from __future__ import annotations

from dataclasses import dataclass

from postrain.evaluation.completions import complete, first_prompt
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.types import Count


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """`tokens` a completion, its end token counted, and the share that is `finished`: not cut at
    rollout.max_new_tokens."""

    prompts: Count = 64
    """Held-out prompts at most; one completion each."""

    def __call__(self, subject: Subject) -> Finding:
        rollouts = complete(subject, self.prompts)
        tokens = [int(own.sum()) for own in rollouts.rows.supervised]
        finished = rollouts.finished_B.tolist()
        rows = zip(rollouts.rows.row_ids, tokens, finished, strict=True)
        return Finding(
            metrics={"tokens": Estimate.mean(tokens, 0), "finished": Estimate.share(finished)},
            example=first_prompt(subject, rollouts),
            records=tuple({"row": row, "tokens": length, "finished": ended} for row, length, ended in rows),
        )
