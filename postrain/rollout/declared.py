"""What sampling logs: completions, what they earn, and whether the sampler's log-probabilities are the policy's."""

from __future__ import annotations

from math import inf

from postrain.metrics import POSITIVE, SHARE, declare

declare("completion/length", "tokens of a completion", unit="tokens", bounds=POSITIVE, title="Length")
declare(
    "completion/finished",
    "share of completions that end by themselves",
    direction="max",
    bounds=SHARE,
    title="Finished",
)
declare("completion/masked", "share of completions left out of the loss because they were cut", bounds=SHARE)

declare("reward/total", "what the policy is paid, mean of a batch", direction="max", title="Reward")
declare("reward/*", "each before weighting", direction="max", title="Parts of the reward")
declare("reward/unscorable", "share of completions that no reward can score", direction="min", bounds=SHARE)

declare("rollout/logp", "log-probability of a sampled token under the sampler", unit="nats", bounds=(-inf, 0.0))
declare(
    "rollout/logp_error",
    "largest difference between the sampler's log-probability of a token and the policy's",
    unit="nats",
    direction="min",
    bounds=POSITIVE,
)
declare("environment/*", "what a multi-turn environment counts, mean over episodes")
