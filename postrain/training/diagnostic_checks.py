"""The checks behind the diagnostic rules: pure functions of a run's metrics that return the measured numbers.

A check returns None where its pattern is absent. Units of metrics come from their declarations (postrain.metrics).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from postrain.data.repetition import DISTINCT, collapsed
from postrain.metrics import metric

History = Sequence[Mapping[str, float]]
"""The metrics of each update, oldest first; the last entry is the update that has just ended."""
WINDOW = 5
"""Updates over which a trend is averaged."""
STALL = 5
"""Updates with a gradient of exactly 0 before a run is stopped."""
ROUNDING = 1e-6
"""Differences up to this are rounding errors of a sum."""
UNSCORABLE = 0.9
"""A share of completions without a reward from which on a reward is called broken."""
LARGE_KL = 0.5
"""A KL below this, in nats/token, is not called large."""
CLIFF = 1.5
"""samples_become_unlikely applies when the samples' log-probability falls to this multiple of its initial value."""
CLIFF_NATS = 0.25
"""The smallest fall it reports, in nats/token: samples at a temperature near 0 start near 0."""


@dataclass(frozen=True)
class Finding:
    """The result of a check that knows which of several causes applies to this run."""

    observed: str
    """The measured numbers, in one sentence."""
    cause: str
    remedy: str


def last(history: History, name: str, count: int) -> list[float] | None:
    """The metric in each of the last `count` updates; None if one of them lacks it or there are fewer updates."""
    values = [entry[name] for entry in history[-count:] if name in entry]
    return values if len(values) == count else None


def measured(history: History, name: str) -> list[float]:
    """The metric wherever it was measured; evaluations do not run at every update."""
    return [entry[name] for entry in history if name in entry]


def first_and_last(history: History, name: str) -> tuple[float, float] | None:
    """Means over the first and the last WINDOW updates; None with fewer than three windows."""
    values = measured(history, name)
    return (fmean(values[:WINDOW]), fmean(values[-WINDOW:])) if len(values) >= 3 * WINDOW else None


def loss_is_not_the_objective(history: History) -> str | None:
    now = history[-1]
    if "reward/greedy" in now:  # Advantages over a greedy completion have another mean.
        return None
    if not ("policy_loss" in now and now.get("grad_norm", 0.0) > 0 and abs(now["policy_loss"]) < 0.05):
        return None
    return f"The policy loss is {now['policy_loss']:.1e}, the gradient norm {now['grad_norm']:.2g}."


def unscorable(history: History) -> str | None:
    shares = {name: history[-1].get(name, 0.0) for name in ("reward/unscorable", "eval/reward/unscorable")}
    name, share = max(shares.items(), key=lambda item: item[1])
    return f"{share:.0%} of the completions have no reward ({name})." if share >= UNSCORABLE else None


def dead_gradient(history: History) -> Finding | None:
    norms = last(history, "grad_norm", STALL)
    if norms is None or any(norms):
        return None
    now = history[-1]
    if now.get("reward/unscorable") == 1:
        why = "No completion could be scored (reward/unscorable is 1).", "Check the reward or the judge."
    elif now.get("completion/masked") == 1:
        why = (
            "Every completion was cut at rollout.max_new_tokens and masked by method.mask_truncated_completions=true.",
            "Raise the limit or set method.mask_truncated_completions=false.",
        )
    elif now.get("advantage/mean_abs") == 0:
        why = "Every completion has the same reward, so all advantages are 0.", "Use a reward that varies."
    elif now.get("completion/length") == 0:
        why = "Every completion is empty.", "Check the prompts and the chat template."
    else:
        why = (
            "The loss does not depend on any trainable parameter.",
            "Check which parameters are frozen and which tokens are masked.",
        )
    return Finding(f"The gradient was exactly 0 in {STALL} consecutive updates.", *why)


def stuck_at_ln_2(history: History) -> Finding | None:
    losses, margins = last(history, "loss", 3), last(history, "margin", 3)
    if losses is None or margins is None:
        return None
    if any(abs(margin) > ROUNDING for margin in margins) or any(abs(loss - math.log(2)) > ROUNDING for loss in losses):
        return None
    now = history[-1]
    if now.get("learning_rate") == 0:
        why = "The learning rate is 0.", "Check method.learning_rate and the warm-up."
    elif now.get("grad_norm") == 0:
        why = (
            "No trainable parameter receives a gradient: all are frozen, or chosen and rejected are the same text.",
            "Check the adapter and the rows.",
        )
    else:
        why = (
            "There is a gradient, but the policy does not move away from the reference.",
            "Check that policy and reference do not share their weights.",
        )
    return Finding("After three updates the loss is still ln 2 = 0.6931 and every margin is 0.", *why)


def saturated_margins(history: History) -> str | None:
    accuracies, losses = last(history, "accuracy", WINDOW), last(history, "loss", WINDOW)
    margins, held_out = last(history, "margin", WINDOW), measured(history, "eval/accuracy")
    if accuracies is None or losses is None or margins is None or fmean(accuracies) < 0.995 or fmean(losses) > 0.02:
        return None
    known = f" Held-out accuracy: {held_out[-1]:.0%} (best so far {max(held_out):.0%})." if held_out else ""
    return (
        f"The policy ranks all training pairs correctly with a mean margin of {fmean(margins):.1f}, and the loss is "
        f"{fmean(losses):.2g}.{known}"
    )


def likelihood_displacement(history: History) -> str | None:
    chosen, rejected = (last(history, f"log_ratio/{name}", WINDOW) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or not fmean(rejected) < fmean(chosen) < -1:
        return None
    return (
        f"The log-ratio to the reference is {fmean(chosen):.1f} nats for chosen and {fmean(rejected):.1f} nats for "
        "rejected answers: both have become less likely."
    )


def accuracy_is_not_quality(history: History) -> str | None:
    accuracy, gold = measured(history, "eval/accuracy"), measured(history, "gold/total")
    if min(len(accuracy), len(gold)) < 2 or accuracy[-1] < accuracy[0] + 0.05 or gold[-1] > gold[0] - 0.02:
        return None
    return (
        f"Held-out accuracy rose from {accuracy[0]:.0%} to {accuracy[-1]:.0%}, while the gold score of sampled "
        f"completions fell from {gold[0]:.2f} to {gold[-1]:.2f}."
    )


def negative_kl(history: History) -> str | None:
    now = history[-1]
    if now.get("kl/k1", 0.0) >= -1e-3:
        return None
    exact = f" The exact KL of the same tokens is {now['kl/exact']:.3g}." if "kl/exact" in now else ""
    return f"The KL estimate k1 is {now['kl/k1']:.3g} nats/token.{exact}"


def kl_blow_up(history: History) -> str | None:
    name = "kl/exact" if "kl/exact" in history[-1] else "kl/k3"
    values = last(history, name, 4 * WINDOW)
    if values is None:
        return None
    before, now = fmean(values[WINDOW : 2 * WINDOW]), fmean(values[-WINDOW:])
    if now < LARGE_KL or now < 3 * before:
        return None
    return f"{name} rose from {before:.2g} to {now:.2g} {metric(name).unit} within {3 * WINDOW} updates."


def reward_grows_with_length(history: History) -> str | None:
    reward, length = first_and_last(history, "reward/total"), first_and_last(history, "completion/length")
    if reward is None or length is None or reward[1] <= reward[0] or length[1] < 1.5 * length[0]:
        return None
    return (
        f"The reward rose from {reward[0]:.2f} to {reward[1]:.2f} while completions grew from {length[0]:.0f} to "
        f"{length[1]:.0f} tokens."
    )


def reward_grows_with_repetition(history: History) -> str | None:
    reward, repeated = (measured(history, f"eval/{name}") for name in ("reward/total", "repetition"))
    if min(len(reward), len(repeated)) < 2 or reward[-1] <= reward[0] or repeated[-1] < max(0.1, 2 * repeated[0]):
        return None
    return (
        f"On held-out prompts the reward rose from {reward[0]:.2f} to {reward[-1]:.2f}, and the share of repeated "
        f"n-grams rose from {repeated[0]:.0%} to {repeated[-1]:.0%}."
    )


def completions_collapse(history: History) -> str | None:
    evaluations = [entry for entry in history if f"eval/{DISTINCT}" in entry]
    found = collapsed(evaluations[0], evaluations[-1]) if len(evaluations) > 1 else ""
    return f"On held-out prompts {found}." if found else None


def reward_overoptimization(history: History) -> str | None:
    reward, gold = measured(history, "eval/reward/total")[-3:], measured(history, "gold/total")[-3:]
    if min(len(reward), len(gold)) < 3 or not (reward[0] < reward[1] < reward[2] and gold[0] > gold[1] > gold[2]):
        return None
    return (
        f"Over the last three evaluations the reward rose from {reward[0]:.2f} to {reward[2]:.2f} while the gold score "
        f"fell from {gold[0]:.2f} to {gold[2]:.2f}."
    )


def samples_become_unlikely(history: History) -> str | None:
    """Only for methods with a reward or pairs: SFT is meant to leave the reference's text."""
    logps = measured(history, "eval/reference_logp")
    optimizes = any(name in history[-1] for name in ("margin", "reward/total", "eval/win_rate"))
    if not optimizes or len(logps) < 2 or logps[-1] > min(CLIFF * logps[0], logps[0] - CLIFF_NATS):
        return None
    return (
        "The mean log-probability of sampled tokens under the reference fell from "
        f"{logps[0]:.2f} before training to {logps[-1]:.2f} nats/token."
    )


def zero_variance_groups(history: History) -> str | None:
    shares = last(history, "group/frac_reward_zero_std", WINDOW)
    if shares is None or fmean(shares) < 0.8:
        return None
    now = history[-1]
    differ = (1 - shares[-1]) * now.get("group/prompts_sampled", math.inf)
    if now.get("group/with_gradient", 0.0) > differ + 0.5:  # Advantages that are not relative to the group.
        return None
    rewards = [value for value in (record.get("reward/total") for record in history[-WINDOW:]) if value is not None]
    return (
        f"In {fmean(shares):.0%} of the groups all completions have the same reward (mean reward {fmean(rewards):.2f})."
    )


def completions_truncated(history: History) -> Finding | str | None:
    if last(history, "completion/finished", 3) != [0.0, 0.0, 0.0]:
        return None
    observed = "In three updates every completion was cut at rollout.max_new_tokens."
    if "reward/total" in history[-1]:
        return observed
    return Finding(
        observed,
        "The limit is too low for this model, or the model has not learned to stop.",
        "Raise rollout.max_new_tokens, start from a model after SFT, or mix in completions of the data "
        "(method=distill: method.on_policy=0.5).",
    )


def high_clip_fraction(history: History) -> str | None:
    fractions = last(history, "clip_fraction", 3)
    if fractions is None or min(fractions) < 0.3:
        return None
    return f"{fmean(fractions):.0%} of the tokens are clipped."


def sampler_mismatch(history: History) -> Finding | None:
    windows = {name: last(history, f"rollout/is_{name}", 3) for name in ("mean", "eff_sample_size", "clipped")}
    means, sizes, clipped = (fmean(values) if values else None for values in windows.values())
    if means is None or sizes is None or clipped is None or not (sizes < 0.5 or clipped > 0.2 or means < 0.5):
        return None
    observed = (
        f"The importance weights of sampled tokens have a mean of {means:.2f} (1 is expected), an effective sample "
        f"size of {sizes:.0%} of the tokens, and {clipped:.0%} of them are truncated or masked."
    )
    if means < 0.5:
        return Finding(
            observed,
            "The sampler's log-probabilities are higher than the policy's: top-k, top-p or min-p exclude much of the "
            "distribution, or the server ignores rollout.temperature.",
            "Set rollout.top_p=1, rollout.top_k=0 and rollout.min_p=0, or use a mode of token level.",
        )
    return Finding(
        observed,
        "The sampler's distribution is far from the policy's, so that few tokens carry most of the gradient.",
        "Use the policy's precision (rollout.dtype), rollout.overlap=0, a lower method.learning_rate, or a mode of "
        "token level (method.rollout_importance_sampling_mode=token_truncate).",
    )
