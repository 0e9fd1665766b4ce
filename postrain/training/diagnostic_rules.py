"""Diagnostic rules: pure functions from the metrics so far to one paragraph, or None.

A rule reads the history, oldest first; the last entry is the update that has just ended. Its paragraph states what was
measured, what that means, and what to do, if anything. diagnostics.py applies the rules; each reports once a run.
Units of metrics come from their declarations (postrain.metrics).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from postrain.data.repetition import DISTINCT, collapsed
from postrain.metrics import metric

History = Sequence[Mapping[str, float]]

STALL = 5
"""Updates with a gradient of exactly 0 before a run is stopped."""
WINDOW = 5
"""Updates that a trend is averaged over."""


@dataclass(frozen=True)
class Rule:
    """One known pattern in the metrics of a run."""

    name: str
    title: str
    check: Callable[[History], str | None]
    stops: bool = False
    """Whether training ends where the rule applies."""


def last(history: History, name: str, count: int) -> list[float] | None:
    """The metric in each of the last `count` updates; None when one of them lacks it or there are not so many."""
    values = [entry[name] for entry in history[-count:] if name in entry]
    return values if len(values) == count else None


def seen(history: History, name: str) -> list[float]:
    """The metric wherever it was measured: evaluations are not in every update."""
    return [entry[name] for entry in history if name in entry]


def ends(history: History, name: str) -> tuple[float, float] | None:
    """Means over the first and the last updates; None while they overlap."""
    values = seen(history, name)
    return (fmean(values[:WINDOW]), fmean(values[-WINDOW:])) if len(values) >= 3 * WINDOW else None


def loss_is_not_the_objective(history: History) -> str | None:
    now = history[-1]
    if not ("policy_loss" in now and now.get("grad_norm", 0.0) > 0 and abs(now["policy_loss"]) < 0.05):
        return None
    return (
        f"The policy loss is {now['policy_loss']:.1e}, yet the gradient norm is {now['grad_norm']:.2g}. That is as it "
        "should be: while the policy is still close to the one that sampled, the ratio is near 1 and the loss near the "
        "mean of advantages that were made to have mean 0. Its value says nothing; its gradient does the work. "
        "Watch the reward and the KL instead."
    )


def dead_gradient(history: History) -> str | None:
    norms = last(history, "grad_norm", STALL)
    if norms is None or any(norms):
        return None
    now = history[-1]
    if now.get("reward/unscorable") == 1:
        reason = "nothing could score a single completion (reward/unscorable is 1): look at the reward, or at the judge"
    elif now.get("completion/masked") == 1:
        reason = (
            "every completion was truncated at rollout.max_new_tokens, and method.mask_truncated_completions=true "
            "excludes those from the loss: raise the limit, or set method.mask_truncated_completions=false"
        )
    elif now.get("advantage/mean_abs") == 0:
        reason = "every completion earned the same, so no advantage differs from 0: use a reward that varies"
    elif now.get("completion/length") == 0:
        reason = "every completion is empty, so there is no token to learn from: look at the prompts and the template"
    else:
        reason = "no parameter that can learn has any influence on the loss: look at what is frozen and what is masked"
    return f"the gradient was exactly 0 in {STALL} updates in a row; {reason}"


def stuck_at_ln_2(history: History) -> str | None:
    losses, margins = last(history, "loss", 3), last(history, "margin", 3)
    if losses is None or margins is None:
        return None
    if any(abs(margin) > ROUNDING for margin in margins) or any(abs(loss - math.log(2)) > ROUNDING for loss in losses):
        return None
    now = history[-1]
    if now.get("learning_rate") == 0:
        reason = "the learning rate is 0 (a warm-up that has not begun, or method.learning_rate)"
    elif now.get("grad_norm") == 0:
        reason = (
            "no parameter that can learn receives a gradient: they are frozen, or the two answers are the same text"
        )
    else:
        reason = "there is a gradient but no movement against the reference: do the two share their weights?"
    return f"The loss is still ln 2 = 0.6931 and every margin 0 after three updates, a fair coin. Here {reason}."


ROUNDING = 1e-6
"""What the order of summation makes of a difference that is 0."""


def saturated_margins(history: History) -> str | None:
    accuracies, losses = last(history, "accuracy", WINDOW), last(history, "loss", WINDOW)
    margins, held_out = last(history, "margin", WINDOW), seen(history, "eval/accuracy")
    if accuracies is None or losses is None or margins is None or fmean(accuracies) < 0.995 or fmean(losses) > 0.02:
        return None
    known = f" Held-out pairs: {held_out[-1]:.0%} right (best so far {max(held_out):.0%})." if held_out else ""
    return (
        f"The policy tells all training pairs apart, with a margin of {fmean(margins):.1f}, and the loss is "
        f"{fmean(losses):.2g}: there is hardly a gradient left, and what remains widens gaps that are wide enough."
        f"{known} More updates will not help; more pairs, fewer epochs, a larger beta or label smoothing may."
    )


def likelihood_displacement(history: History) -> str | None:
    chosen, rejected = (last(history, f"log_ratio/{name}", WINDOW) for name in ("chosen", "rejected"))
    if chosen is None or rejected is None or not fmean(rejected) < fmean(chosen) < -1:
        return None
    return (
        f"The chosen answers have become less likely than at the start ({fmean(chosen):.1f} nats), the rejected ones "
        f"more so ({fmean(rejected):.1f}). The loss only asks for the gap, so this is expected; the probability goes "
        "to texts that are in no pair. When the answers get worse, imitate the chosen ones too (method.sft_coef=1) or "
        "raise method.beta."
    )


def accuracy_is_not_quality(history: History) -> str | None:
    accuracy, gold = seen(history, "eval/accuracy"), seen(history, "gold/total")
    if min(len(accuracy), len(gold)) < 2 or accuracy[-1] < accuracy[0] + 0.05 or gold[-1] > gold[0] - 0.02:
        return None
    return (
        f"Held-out pairs are told apart better ({accuracy[0]:.0%} to {accuracy[-1]:.0%}), but what the policy writes "
        f"has become worse (gold score {gold[0]:.2f} to {gold[-1]:.2f}). Ranking two texts and writing a good one "
        "are different skills: lower method.learning_rate, raise method.beta, or imitate the chosen answers too."
    )


def negative_kl(history: History) -> str | None:
    now = history[-1]
    if now.get("kl/k1", 0.0) >= -1e-3:
        return None
    exact = f"The exact KL of the same tokens is {now['kl/exact']:.3g}." if "kl/exact" in now else ""
    return (
        f"The KL estimate k1 is {now['kl/k1']:.3g}. A KL cannot be negative, an estimate of it can: k1 is the mean of "
        f"log(policy/reference) over sampled tokens, right on average and noisy. {exact} It is a reason to worry only "
        "when it keeps falling while samples are drawn with top-k or top-p, whose tokens are not the policy's."
    )


def kl_blow_up(history: History) -> str | None:
    name = "kl/exact" if "kl/exact" in history[-1] else "kl/k3"
    values = last(history, name, 4 * WINDOW)
    if values is None:
        return None
    before, now = fmean(values[WINDOW : 2 * WINDOW]), fmean(values[-WINDOW:])
    if now < LARGE_KL or now < 3 * before:
        return None
    return (
        f"{name} went from {before:.2g} to {now:.2g} {metric(name).unit} within {3 * WINDOW} updates. The policy is "
        "leaving the text it came from; fluency goes first. Raise method.kl_coef or lower "
        "method.learning_rate, and read the samples before you trust the reward."
    )


LARGE_KL = 0.5
"""Nats a token below which no KL is called large."""


def reward_grows_with_length(history: History) -> str | None:
    reward, length = ends(history, "reward/total"), ends(history, "completion/length")
    if reward is None or length is None or reward[1] <= reward[0] or length[1] < 1.5 * length[0]:
        return None
    return (
        f"The reward rose from {reward[0]:.2f} to {reward[1]:.2f} while completions grew from {length[0]:.0f} to "
        f"{length[1]:.0f} tokens. The policy may be paid for length and not for what you meant: compare samples of "
        "equal length, or add a part to the reward that does not grow with it."
    )


def reward_grows_with_repetition(history: History) -> str | None:
    reward, repeated = (seen(history, f"eval/{name}") for name in ("reward/total", "repetition"))
    if min(len(reward), len(repeated)) < 2 or reward[-1] <= reward[0] or repeated[-1] < max(0.1, 2 * repeated[0]):
        return None
    return (
        f"On held-out prompts the reward rose from {reward[0]:.2f} to {reward[-1]:.2f}, and so did the share of "
        f"repeated phrases, from {repeated[0]:.0%} to {repeated[-1]:.0%}. Saying again and again what pays is the "
        "commonest way to cheat a reward: add a penalty on repetition, or raise method.kl_coef."
    )


def completions_collapse(history: History) -> str | None:
    evaluations = [entry for entry in history if f"eval/{DISTINCT}" in entry]
    found = collapsed(evaluations[0], evaluations[-1]) if len(evaluations) > 1 else ""
    if not found:
        return None
    return (
        f"On held-out prompts {found}. The policy gives the same or a one-word answer to every prompt; its reward says "
        "nothing about useful text. Continue from an earlier checkpoint with a larger method.kl_coef or a smaller "
        "method.learning_rate, or change the reward that pays for it. Where the data asks for such answers, as labels "
        "are, nothing is wrong."
    )


def reward_overoptimization(history: History) -> str | None:
    reward, gold = seen(history, "eval/reward/total")[-3:], seen(history, "gold/total")[-3:]
    if min(len(reward), len(gold)) < 3 or not (reward[0] < reward[1] < reward[2] and gold[0] > gold[1] > gold[2]):
        return None
    return (
        f"For three evaluations the reward has risen ({reward[0]:.2f} to {reward[2]:.2f}) while the gold score it "
        f"stands for has fallen ({gold[0]:.2f} to {gold[2]:.2f}): the policy exploits the reward's mistakes. An "
        "earlier checkpoint is better than this one; raise method.kl_coef or train a better reward."
    )


def samples_become_unlikely(history: History) -> str | None:
    """Only where the policy is paid or ranks: imitation of other text is meant to leave the reference's."""
    logps = seen(history, "eval/reference_logp")
    paid = any(name in history[-1] for name in ("margin", "reward/total", "eval/win_rate"))
    if not paid or len(logps) < 2 or logps[-1] > min(CLIFF * logps[0], logps[0] - CLIFF_NATS):
        return None
    return (
        "What the policy writes has become unlikely text: the mean log-probability of a token under the reference fell "
        f"from {logps[0]:.2f} before training to {logps[-1]:.2f}. Broken words and sentences look like this, and "
        "neither the accuracy on pairs nor most rewards notice. Read the samples; lower method.learning_rate, train "
        "for fewer updates, or hold the policy closer to the reference (method.beta, method.kl_coef, an SFT term)."
    )


CLIFF = 1.5
"""The rule applies when the samples' log-probability falls to this multiple of its value before training."""
CLIFF_NATS = 0.25
"""A fall, in nats a token, below which none is called a cliff: samples near temperature 0 begin near 0."""


def completions_truncated(history: History) -> str | None:
    if last(history, "completion/finished", 3) != [0.0, 0.0, 0.0]:
        return None
    return (
        "In three updates not one completion ended by itself: all were cut at rollout.max_new_tokens. Either the limit "
        "is too short for this model, or it has not learnt to stop. That is harmless when the reward can judge an "
        "unfinished text; otherwise raise the limit or method.missing_eos_penalty."
    )


def high_clip_fraction(history: History) -> str | None:
    fractions = last(history, "clip_fraction", 3)
    if fractions is None or min(fractions) < 0.3:
        return None
    return (
        f"{fmean(fractions):.0%} of the tokens are clipped: the policy moves further in one update than the clip range "
        "allows, and those tokens have no gradient (with method.objective=cispo: a bounded one). Lower "
        "method.learning_rate or method.epochs."
    )


def zero_variance_groups(history: History) -> str | None:
    shares = last(history, "group/frac_reward_zero_std", WINDOW)
    if shares is None or fmean(shares) < 0.8:
        return None
    rewards = [value for value in (record.get("reward/total") for record in history[-WINDOW:]) if value is not None]
    return (
        f"In {fmean(shares):.0%} of the groups all completions earned the same (mean reward {fmean(rewards):.2f}): a "
        "group teaches by its differences, so most of each rollout is thrown away. Give easier or harder prompts, more "
        "completions of each (method.group_size), a higher rollout.temperature, a reward in steps instead of all or "
        "nothing, or let further prompts replace such groups (method.dynamic_sampling)."
    )


RULES = (
    Rule("loss_is_not_the_objective", "The loss is near 0 and that is fine", loss_is_not_the_objective),
    Rule("dead_gradient", "The gradient is 0", dead_gradient, stops=True),
    Rule("stuck_at_ln_2", "The loss stays at ln 2", stuck_at_ln_2),
    Rule("saturated_margins", "The pairs have nothing more to teach", saturated_margins),
    Rule("likelihood_displacement", "Chosen and rejected both become less likely", likelihood_displacement),
    Rule("accuracy_is_not_quality", "Better at ranking, worse at writing", accuracy_is_not_quality),
    Rule("negative_kl", "A negative KL", negative_kl),
    Rule("kl_blow_up", "The KL runs away", kl_blow_up),
    Rule("reward_grows_with_length", "More reward, longer texts", reward_grows_with_length),
    Rule("reward_grows_with_repetition", "More reward, more repetition", reward_grows_with_repetition),
    Rule("completions_collapse", "The completions have collapsed", completions_collapse),
    Rule("reward_overoptimization", "More reward, less of what it stands for", reward_overoptimization),
    Rule("samples_become_unlikely", "The samples are no longer likely text", samples_become_unlikely),
    Rule("zero_variance_groups", "Most groups have nothing to compare", zero_variance_groups),
    Rule("completions_truncated", "No completion comes to an end", completions_truncated),
    Rule("high_clip_fraction", "Much is clipped", high_clip_fraction),
)
