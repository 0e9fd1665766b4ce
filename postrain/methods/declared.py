"""Metrics of methods: losses, implicit rewards, KL and log-ratios to the reference, and optimizer statistics."""

from __future__ import annotations

from math import inf

from postrain.metrics import POSITIVE, SHARE, declare

declare("loss", "training loss, mean over an update", direction="min", title="Loss")
declare("eval/loss", "loss on held-out rows", direction="min", bounds=POSITIVE, title="Loss")
declare("loss/*", "one term of the loss, before weighting", direction="min")
declare("policy_loss", "clipped surrogate; near 0 by construction, only its gradient matters", title="Policy loss")
declare("value_loss", "half the squared error of the critic", direction="min", bounds=POSITIVE, title="Value loss")
declare("nll", "negative log-likelihood of a token", unit="nats", direction="min", bounds=POSITIVE)
declare("nll/chosen", "negative log-likelihood of a chosen token", unit="nats", direction="min", bounds=POSITIVE)
declare(
    "perplexity",
    "exp of the mean negative log-likelihood per token",
    direction="min",
    bounds=(1.0, inf),
    title="Perplexity",
)
declare("token_accuracy", "share of tokens whose most likely prediction is correct", direction="max", bounds=SHARE)

declare(
    "accuracy",
    "share of pairs whose chosen completion has the higher (implicit) reward; ties count half",
    direction="max",
    bounds=SHARE,
)
declare("margin", "reward of the chosen minus the rejected completion", direction="max", title="Margin")
declare("reward/chosen", "(implicit) reward of chosen completions; only the margin matters")
declare("reward/rejected", "(implicit) reward of rejected completions; only the margin matters")
declare("reward/desirable", "implicit reward of desirable completions")
declare("reward/undesirable", "implicit reward of undesirable completions")
declare("logp/*", "log-probability of a completion, summed over its tokens", unit="nats", bounds=(-inf, 0.0))
declare(
    "log_ratio/*",
    "log-ratio of a completion to the reference, summed over its tokens",
    unit="nats",
    title="Log-ratio to the reference",
)
declare("length/*", "tokens of the trained completions", unit="tokens", bounds=POSITIVE, title="Lengths in the data")
declare("log_ratio_max", "largest log-ratio of a token to the reference", unit="nats", bounds=POSITIVE)
declare("calibration_error", "expected calibration error", direction="min", bounds=SHARE)
declare("tie_rate", "share of pairs without a preference", bounds=SHARE)
declare("win_rate", "share of completions preferred to the reference's", direction="max", bounds=SHARE)
declare("win_rate/mixture", "win rate against the mixture with the reference", direction="max", bounds=SHARE)
declare("preference", "mean probability that a completion beats the reference's", direction="max", bounds=SHARE)

declare("step_accuracy", "share of steps classified correctly", direction="max", bounds=SHARE)
declare("step_accuracy/*", "share of steps with this label classified correctly", direction="max", bounds=SHARE)
declare("first_error_accuracy", "share of wrong chains whose first wrong step is found", direction="max", bounds=SHARE)
declare("solution_accuracy", "share of whole chains classified correctly", direction="max", bounds=SHARE)
declare("majority_accuracy", "accuracy of always predicting the more frequent label", direction="max", bounds=SHARE)
declare("positive_step_fraction", "share of steps labelled right", bounds=SHARE)

declare(
    "kl/exact",
    "KL of the policy to the reference",
    unit="nats/token",
    direction="min",
    bounds=POSITIVE,
    title="KL to the reference",
)
declare("kl/k1", "mean log-ratio of sampled tokens: unbiased, may be negative", unit="nats/token", direction="min")
declare("kl/k2", "half the mean squared log-ratio", unit="nats/token", direction="min", bounds=POSITIVE)
declare("kl/k3", "mean of ratio - 1 - log-ratio: low variance", unit="nats/token", direction="min")
declare(
    "kl/old_policy",
    "KL (k3) between the current and the old policy",
    unit="nats/token",
    direction="min",
    bounds=POSITIVE,
)
declare("kl/log_ratio_max", "largest log-ratio of a token to the reference", unit="nats", bounds=POSITIVE)
declare("kl/coef", "weight of the KL penalty", bounds=POSITIVE, title="KL coefficient")
declare(
    "kl/baseline", "KTO's KL baseline z, mean log-ratio of mismatched completions", unit="nats", title="KL baseline"
)

declare(
    "align/spans",
    "spans of text where a token of student and teacher begins, per token of the student",
    direction="max",
    bounds=SHARE,
    title="Aligned tokens",
)
declare("align/one_to_one", "share of the student's tokens that are one token of the teacher too", bounds=SHARE)
declare("teacher/top_k_mass", "teacher's probability of the tokens that its server sends", bounds=SHARE)
declare("align/shared_mass", "teacher's probability of tokens in both vocabularies", bounds=SHARE)

declare("entropy", "entropy of the policy", unit="nats/token", title="Entropy")
declare(
    "entropy/exact",
    "entropy of the policy at the tokens of the loss, a sum over the vocabulary",
    unit="nats/token",
    bounds=POSITIVE,
    title="Exact entropy",
)
declare("entropy/coef", "weight of the entropy bonus, set by the adaptive controller", bounds=POSITIVE)
declare("advantage/*", "absolute advantage of a token, mean over a batch", bounds=POSITIVE)
declare(
    "value/explained_variance",
    "1 is a perfect critic, 0 a constant one",
    direction="max",
    bounds=(-inf, 1.0),
    title="Explained variance",
)
declare("clip_fraction", "share of tokens whose gradient the clip changes", bounds=SHARE, title="Clipped tokens")
declare("ratio/*", "importance ratio of a token, π/π_old", bounds=POSITIVE, title="Ratio")
declare(
    "group/frac_reward_zero_std",
    "share of zero-variance groups, without a gradient if advantages are relative to the group",
    direction="min",
    bounds=SHARE,
    title="Zero-variance groups",
)
declare("group/reward_std", "standard deviation of the reward in a group, mean", bounds=POSITIVE)
declare("group/prompts_sampled", "prompts sampled for one batch", bounds=POSITIVE)
declare(
    "group/with_gradient",
    "groups of a batch with a gradient: whose rewards differ, if advantages are relative to the group",
    direction="max",
    bounds=POSITIVE,
)

declare("pass_rate/*", "share of the prompts seen with a pass rate in this interval [%]", bounds=SHARE)
declare("pass_rate/mean", "mean pass rate of the prompts seen", direction="max", bounds=SHARE)

declare("grad_norm", "global gradient norm before clipping", bounds=POSITIVE, title="Gradient norm")
declare("learning_rate", "learning rate of the optimizer, after warm-up and decay", bounds=POSITIVE)
declare("optimizer_steps", "optimizer steps of the run so far", bounds=POSITIVE)
declare("episodes", "rows, pairs or prompts taken from the training data so far", bounds=POSITIVE)
declare("tokens", "tokens trained on so far", unit="tokens", bounds=POSITIVE)
