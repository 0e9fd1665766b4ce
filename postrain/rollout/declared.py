"""Metrics of rollouts: completions, rewards, and how the sampler's log-probabilities differ from the policy's."""

from __future__ import annotations

from math import inf

from postrain.metrics import POSITIVE, SHARE, declare

declare("completion/length", "tokens of a completion", unit="tokens", bounds=POSITIVE, title="Length")
declare(
    "completion/finished",
    "share of completions with an end token or stop text",
    direction="max",
    bounds=SHARE,
    title="Finished",
)
declare("completion/masked", "share of completions masked out of the loss because they were truncated", bounds=SHARE)

declare("reward/total", "mean reward of a batch", direction="max", title="Reward")
declare("reward/*", "a component of the reward, before weighting", direction="max", title="Parts of the reward")
declare("reward/unscorable", "share of completions that no reward can score", direction="min", bounds=SHARE)

declare("rollout/logp", "log-probability of a sampled token under the sampler", unit="nats", bounds=(-inf, 0.0))
declare(
    "rollout/logp_error",
    "largest difference between the sampler's log-probability of a token and the policy's",
    unit="nats",
    direction="min",
    bounds=POSITIVE,
)
declare("rollout/is_mean", "importance ratio policy/sampler, mean over tokens", bounds=POSITIVE)
declare("rollout/is_max", "largest importance ratio policy/sampler", bounds=POSITIVE)
declare(
    "rollout/is_eff_sample_size",
    "effective sample size of the importance weights as a share of the tokens: (Σ w)² / (N Σ w²)",
    direction="max",
    bounds=SHARE,
)
declare("rollout/is_clipped", "share of tokens whose importance weight is truncated or masked", bounds=SHARE)
declare("environment/*", "a number of a multi-turn environment, mean over episodes")
declare("environment/turns", "messages or turns of the policy in an episode", bounds=POSITIVE)
declare("environment/calls", "tool calls, or turns that a text environment continues, in an episode", bounds=POSITIVE)
declare("environment/errors", "failed calls and invalid actions in an episode", direction="min", bounds=POSITIVE)
declare(
    "environment/cut", "share of episodes that end because a reply exceeds the limit", direction="min", bounds=SHARE
)
declare("environment/success", "share of episodes that reach the environment's goal", direction="max", bounds=SHARE)
declare(
    "environment/questions", "questions of a guessing game, all of them if it is lost", direction="min", bounds=POSITIVE
)
declare("environment/regret", "messages above those of the best player, mean over episodes", direction="min")
