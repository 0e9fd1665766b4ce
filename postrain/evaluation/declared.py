"""Declarations of evaluation metrics: held-out completions during training, and evaluation tasks.

A task's metric is logged as <task>/<metric> by `postrain evaluate` and as eval/<task>/<metric> during training.
"""

from __future__ import annotations

from math import inf

from postrain.metrics import POSITIVE, SHARE, declare

declare(
    "gold/*",
    "ground-truth quality of completions of held-out prompts",
    direction="max",
    bounds=SHARE,
    title="Gold score",
)
declare("greedy/*", "the same with greedy decoding", direction="max", title="Greedy completions")
declare(
    "*reference_logp",
    "mean log-probability of a sampled token under the reference; drops when the language degrades",
    unit="nats",
    bounds=(-inf, 0.0),
    title="Log-probability under the reference",
)
declare("repetition", "share of repeated word trigrams", direction="min", bounds=SHARE, title="Repetition")
declare("completion/distinct", "share of distinct completions", direction="max", bounds=SHARE, title="Diversity")
declare("completion/one_word", "share of completions of at most one word", direction="min", bounds=SHARE)
declare(
    "forgetting/perplexity",
    "perplexity of base text, which training does not target",
    direction="min",
    bounds=(1.0, inf),
    title="Forgetting (base-text perplexity)",
)
declare(
    "forgetting/fact_accuracy",
    "share of base facts still known",
    direction="max",
    bounds=SHARE,
    title="Forgetting (base facts)",
)
declare("*/loss", "negative log-likelihood per token", unit="nats", direction="min", bounds=POSITIVE)
declare("*perplexity", "exp of the loss", direction="min", bounds=(1.0, inf))
declare("stress/honest", "mean reward of honest completions", direction="max")
declare("stress/*/gain", "reward of an attack minus that of an honest completion", direction="min")
declare("stress/*/wins", "share of prompts on which an attack has a higher reward", direction="min", bounds=SHARE)
declare("stress/*/gold", "gold score of an attack minus that of an honest completion", direction="max")
declare("rewards/*", "mean reward of completions, by part", direction="max")
declare("rewards/unscorable", "share of completions that no reward can score", direction="min", bounds=SHARE)
declare("kl/per_token", "KL to the reference", unit="nats/token", direction="min", bounds=POSITIVE)
declare("kl/per_completion", "KL to the reference", unit="nats/completion", direction="min", bounds=POSITIVE)
declare("repetition/distinct_*", "share of distinct n-grams (distinct-n)", direction="max", bounds=SHARE)
declare("repetition/loop*", "share of words in a loop, or of looping texts", direction="min", bounds=SHARE)

declare("*accuracy", "share of correct answers", direction="max", bounds=SHARE)
declare("*/accuracy/*", "share of correct answers of one category", direction="max", bounds=SHARE)
declare("accuracy/*", "share of correct answers, greedy or sampled", direction="max", bounds=SHARE)
declare(
    "*/accuracy_per_token", "share of pairs ranked correctly by mean log-probability", direction="max", bounds=SHARE
)
declare("*/margin", "log-probability of the chosen minus the rejected completion", unit="nats", direction="max")
declare(
    "*/margin_per_token",
    "mean log-probability of the chosen minus the rejected completion",
    unit="nats/token",
    direction="max",
)
declare("tool_calls/*", "share of answers with the right tool calls", direction="max", bounds=SHARE)
declare("*/win_rate", "how often a completion is preferred to the other model's", direction="max", bounds=SHARE)
declare("*/consistency", "share of queries with the same verdict in all phrasings", direction="max", bounds=SHARE)
declare("*/agreement*", "share of pairs of phrasings with the same answer", direction="max", bounds=SHARE)
declare("*/worst_phrasing", "share of queries answered correctly in every phrasing", direction="max", bounds=SHARE)
declare("*/refusals_or_empty", "share of answers that are refusals or empty", direction="min", bounds=SHARE)
declare("*/answered", "share of completions from which an answer could be extracted", bounds=SHARE)
declare("*/finished", "share of completions that are not truncated", direction="max", bounds=SHARE)
declare("*/confidence", "mean confidence in the answer", bounds=SHARE)
declare(
    "*auroc", "probability that a correct answer has more confidence than a wrong one", direction="max", bounds=SHARE
)
declare("*error", "expected calibration error", direction="min", bounds=SHARE)
declare("*/tokens", "tokens sampled per prompt", unit="tokens", bounds=POSITIVE)
declare("*/prompt_tokens", "tokens per prompt", unit="tokens", bounds=POSITIVE)
declare("*/one_sample", "score of a single sample (pass@1)", direction="max")
declare("*/same_tokens", "score of best-of-n at the same number of tokens", direction="max")
declare("*/greedy", "score of greedy decoding", direction="max")
declare("*/sampled", "score of a single sample", direction="max", bounds=SHARE)
declare("*/oracle", "score of the best sample (pass@n)", direction="max")
declare("*/gain*", "improvement over the baseline", direction="max")

declare("*/acc", "accuracy (lm-evaluation-harness)", direction="max", bounds=SHARE)
declare("*/acc_norm", "accuracy with length-normalised log-likelihoods", direction="max", bounds=SHARE)
declare("*/exact_match", "share of answers that match exactly", direction="max", bounds=SHARE)
declare("*/f1", "F1 score (lm-evaluation-harness)", direction="max", bounds=SHARE)
declare("*bits_per_byte", "negative log-likelihood", unit="bits per byte", direction="min", bounds=POSITIVE)
