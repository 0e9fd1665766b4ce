"""What methods log: losses, scores of answers, distances from the reference policy, and how an update went."""

from __future__ import annotations

from math import inf

from postrain.metrics import POSITIVE, SHARE, declare

declare("loss", "what is minimised", direction="min", title="Loss")
declare("eval/loss", "what is minimised, on held-out rows", direction="min", bounds=POSITIVE, title="Loss")
declare("loss/*", "one term of the loss, before weighting", direction="min")
declare("policy_loss", "near 0 by construction: its gradient does the work", title="Policy loss")
declare("value_loss", "half the squared error of the critic", direction="min", bounds=POSITIVE, title="Value loss")
declare("nll", "negative log-likelihood of a token", unit="nats", direction="min", bounds=POSITIVE)
declare("nll/chosen", "negative log-likelihood of a chosen token", unit="nats", direction="min", bounds=POSITIVE)
declare(
    "perplexity",
    "how many tokens the model hesitates between",
    direction="min",
    bounds=(1.0, inf),
    title="Perplexity",
)
declare("token_accuracy", "how often the likeliest token is the right one", direction="max", bounds=SHARE)

declare("accuracy", "how often the chosen answer gets the higher score", direction="max", bounds=SHARE)
declare("margin", "score of the good minus the bad answer", direction="max", title="Margin")
declare("reward/chosen", "score of the chosen answer; only its distance to the rejected one matters")
declare("reward/rejected", "score of the rejected answer; only its distance to the chosen one matters")
declare("reward/desirable", "score of a desirable answer, against the baseline")
declare("reward/undesirable", "score of an undesirable answer, against the baseline")
declare("logp/*", "log-probability of an answer, summed over its tokens", unit="nats", bounds=(-inf, 0.0))
declare(
    "log_ratio/*",
    "log-ratio of a completion to the reference, summed over its tokens",
    unit="nats",
    title="Log-ratio to the reference",
)
declare("length/*", "tokens of the answers learned from", unit="tokens", bounds=POSITIVE, title="Lengths in the data")
declare("log_ratio_max", "largest log-ratio of a token to the reference", unit="nats", bounds=POSITIVE)
declare("calibration_error", "distance between predicted and observed shares", direction="min", bounds=SHARE)
declare("tie_rate", "share of pairs without a preference", bounds=SHARE)
declare("win_rate", "share of completions preferred to the reference's", direction="max", bounds=SHARE)
declare("win_rate/mixture", "win rate against the mixture with the reference", direction="max", bounds=SHARE)
declare("preference", "mean probability that a completion beats the reference's", direction="max", bounds=SHARE)

declare("step_accuracy", "share of steps classified correctly", direction="max", bounds=SHARE)
declare("step_accuracy/*", "the same over the steps with this label", direction="max", bounds=SHARE)
declare("first_error_accuracy", "share of wrong chains whose first wrong step is found", direction="max", bounds=SHARE)
declare("solution_accuracy", "share of whole chains classified correctly", direction="max", bounds=SHARE)
declare("majority_accuracy", "accuracy of always predicting the more frequent label", direction="max", bounds=SHARE)
declare("positive_step_fraction", "share of steps that are right", bounds=SHARE)

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
declare("kl/old_policy", "distance to the policy that sampled", unit="nats/token", direction="min", bounds=POSITIVE)
declare("kl/log_ratio_max", "largest log-ratio of a token to the reference", unit="nats", bounds=POSITIVE)
declare("kl/coef", "weight of the KL penalty", bounds=POSITIVE, title="KL coefficient")
declare("kl/baseline", "log-ratio that KTO measures completions against", unit="nats", title="KL baseline")

declare("entropy", "entropy of the policy", unit="nats/token", title="Entropy")
declare("entropy/exact", "the same from the whole distribution", unit="nats/token", bounds=POSITIVE)
declare("advantage/*", "size of the advantages of a batch", bounds=POSITIVE)
declare(
    "value/explained_variance",
    "1 is a perfect critic, 0 a constant one",
    direction="max",
    bounds=(-inf, 1.0),
    title="Explained variance",
)
declare("clip_fraction", "share that moved further than the clip range", bounds=SHARE, title="Clipped tokens")
declare("ratio/*", "probability of a token now over when it was sampled", bounds=POSITIVE, title="Ratio")
declare(
    "group/frac_reward_zero_std",
    "share of zero-variance groups, which carry no gradient",
    direction="min",
    bounds=SHARE,
    title="Groups that agree",
)
declare("group/reward_std", "standard deviation of the reward in a group, mean", bounds=POSITIVE)
declare("group/prompts_sampled", "prompts sampled for one batch", bounds=POSITIVE)
declare("group/with_gradient", "groups of a batch whose completions differ in reward", direction="max", bounds=POSITIVE)

declare("grad_norm", "before clipping", bounds=POSITIVE, title="Gradient norm")
declare("learning_rate", "of the optimizer, after warm-up and decay", bounds=POSITIVE)
declare("optimizer_steps", "optimizer steps since the start", bounds=POSITIVE)
declare("episodes", "rows learned from since the start", bounds=POSITIVE)
declare("tokens", "tokens the policy was applied to since the start", unit="tokens", bounds=POSITIVE)
