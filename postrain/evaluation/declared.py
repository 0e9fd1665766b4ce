"""What evaluations measure: held-out completions during training, and the measures of the evaluate command.

A measure's metric is logged as <measure>/<metric> by the command and as eval/<measure>/<metric> during training.
"""

from __future__ import annotations

from math import inf

from postrain.metrics import POSITIVE, SHARE, declare

declare("gold/*", "what is known to be good, on held-out prompts", direction="max", bounds=SHARE, title="Gold score")
declare("greedy/*", "the same, drawn greedy_metrics", direction="max", title="Likeliest completions")
declare(
    "*reference_logp",
    "log-probability of a sampled token, nats; it falls where the language breaks",
    unit="nats",
    bounds=(-inf, 0.0),
    title="Likelihood under the reference",
)
declare("repetition", "share of phrases said before", direction="min", bounds=SHARE, title="Repetition")
declare("completion/distinct", "share of different completions", direction="max", bounds=SHARE, title="Variety")
declare("completion/one_word", "share of completions of at most one word", direction="min", bounds=SHARE)
declare(
    "forgetting/perplexity",
    "how well text is foreseen that training is not about",
    direction="min",
    bounds=(1.0, inf),
    title="Base text",
)
declare(
    "forgetting/fact_accuracy",
    "share still known of what training is not about",
    direction="max",
    bounds=SHARE,
    title="Base facts",
)
declare("*/loss", "negative log-likelihood of a token", unit="nats", direction="min", bounds=POSITIVE)
declare("*perplexity", "exp of the loss", direction="min", bounds=(1.0, inf))
declare("rewards/*", "what completions earn, by part of the reward", direction="max")
declare("rewards/unscorable", "share of completions that no reward can score", direction="min", bounds=SHARE)
declare("kl/per_token", "KL to the reference", unit="nats/token", direction="min", bounds=POSITIVE)
declare("kl/per_completion", "KL to the reference", unit="nats/completion", direction="min", bounds=POSITIVE)
declare("repetition/distinct_*", "share of phrases that are said only once", direction="max", bounds=SHARE)
declare("repetition/loop*", "share of a text, or of texts, caught in a loop", direction="min", bounds=SHARE)

declare("*accuracy", "share of right answers", direction="max", bounds=SHARE)
declare("*/accuracy/*", "share of right answers of one category", direction="max", bounds=SHARE)
declare("accuracy/*", "share of right answers, greedy or sampled", direction="max", bounds=SHARE)
declare("*/accuracy_per_token", "share of pairs ranked right by mean log-probability", direction="max", bounds=SHARE)
declare("*/margin", "log-probability of the chosen minus the rejected answer", unit="nats", direction="max")
declare("*/margin_per_token", "the same of means over tokens", unit="nats/token", direction="max")
declare("*/win_rate", "how often a completion is preferred to the other model's", direction="max", bounds=SHARE)
declare("*/consistency", "share of queries with the same verdict in all wordings", direction="max", bounds=SHARE)
declare("*/agreement*", "share of wordings whose answers agree", direction="max", bounds=SHARE)
declare("*/worst_phrasing", "share of queries that are right in every wording", direction="max", bounds=SHARE)
declare("*/refusals_or_empty", "share of answers that refuse or say nothing", direction="min", bounds=SHARE)
declare("*/answered", "share of completions with an answer to read", bounds=SHARE)
declare("*/finished", "share of completions that end by themselves", direction="max", bounds=SHARE)
declare("*/confidence", "how sure the model is of its answer", bounds=SHARE)
declare("*auroc", "probability that a right answer has more confidence than a wrong one", direction="max", bounds=SHARE)
declare("*error", "distance between confidence and accuracy", direction="min", bounds=SHARE)
declare("*/tokens", "tokens spent on a prompt", unit="tokens", bounds=POSITIVE)
declare("*/prompt_tokens", "tokens of a prompt", unit="tokens", bounds=POSITIVE)
declare("*/one_sample", "score of a single sample", direction="max")
declare("*/same_tokens", "score of best-of-n at the same number of tokens", direction="max")
declare("*/greedy", "score of greedy decoding", direction="max")
declare("*/sampled", "score of a single sample", direction="max", bounds=SHARE)
declare("*/oracle", "score if the best sample were always chosen", direction="max")
declare("*/gain*", "how much better than a single sample", direction="max")

declare("*/acc", "accuracy of the harness", direction="max", bounds=SHARE)
declare("*/acc_norm", "the same, normalised by length", direction="max", bounds=SHARE)
declare("*/exact_match", "share of answers that match exactly", direction="max", bounds=SHARE)
declare("*/f1", "F1 of the harness", direction="max", bounds=SHARE)
declare("*bits_per_byte", "negative log-likelihood", unit="bits per byte", direction="min", bounds=POSITIVE)
