"""How far a model is from its reference, on what it writes itself: the exact KL divergence of next-token distributions.

Axes: B completions, T tokens of a completion.
"""

from __future__ import annotations

from dataclasses import dataclass

from postrain.evaluation.completions import compared, complete, first_prompt
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.types import Count

NEEDED = (
    "needs a model to compare with; name one with reference=DIRECTORY (in training: evaluation.completions above 0)"
)

SILENT = "the model sampled no token, so there is nothing to compare"


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """KL(model ‖ reference) summed over the vocabulary, in nats: `per_token`, over all tokens of sampled completions,
    and `per_completion`, their sums; and `reference_logp`, the mean log-probability that the reference gives to a
    sampled token. At the temperature of sampling."""

    prompts: Count = 64
    """Held-out prompts at most; one completion each."""

    def __call__(self, subject: Subject) -> Finding:
        if subject.reference is None:
            return Finding(metrics={}, notes=(NEEDED,))
        rollouts = complete(subject, self.prompts)
        found = compared(subject, rollouts)
        tokens = found.mask_BT.sum(1).tolist()
        sums = found.kl_BT.double().sum(1).tolist()
        logps = (found.ref_logps_BT.double() * found.mask_BT).sum(1).tolist()
        if not any(tokens):
            return Finding(metrics={}, notes=(SILENT,))
        rows = zip(rollouts.rows.row_ids, sums, logps, tokens, strict=True)
        return Finding(
            metrics={
                "per_token": Estimate.ratio(sums, tokens),
                "per_completion": Estimate.mean(sums, 0),
                "reference_logp": Estimate.ratio(logps, tokens),
            },
            example=first_prompt(subject, rollouts),
            records=tuple(
                {
                    "row": row,
                    "per_token": kl / max(count, 1),
                    "per_completion": kl,
                    "reference_logp": logp / max(count, 1),
                    "weight": count,
                }
                for row, kl, logp, count in rows
            ),
            notes=(subject.reference.says,),
        )
