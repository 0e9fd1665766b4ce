"""Diagnostic rules: known patterns in the metrics of a run, each with its symptom, cause and remedy.

diagnostics.py applies them after every update; each rule reports once per run. The checks are in diagnostic_checks.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from postrain.training.diagnostic_checks import (
    Finding,
    History,
    accuracy_is_not_quality,
    completions_collapse,
    completions_truncated,
    dead_gradient,
    high_clip_fraction,
    kl_blow_up,
    likelihood_displacement,
    loss_is_not_the_objective,
    negative_kl,
    reward_grows_with_length,
    reward_grows_with_repetition,
    reward_overoptimization,
    sampler_mismatch,
    samples_become_unlikely,
    saturated_margins,
    stuck_at_ln_2,
    unscorable,
    zero_variance_groups,
)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One known pattern in the metrics of a run; the troubleshooting page of the documentation lists these fields."""

    name: str
    title: str
    symptom: str
    """Which metrics show the pattern, with thresholds."""
    cause: str
    remedy: str
    check: Callable[[History], Finding | str | None]
    """The finding, or only its numbers; None where the rule does not apply."""
    stops: bool = False
    """Whether training ends where the rule applies."""

    def message(self, history: History) -> str | None:
        """One paragraph: the numbers, the cause, the remedy. None where the rule does not apply."""
        found = self.check(history)
        if isinstance(found, str):
            found = Finding(found, self.cause, self.remedy)
        return found and f"{found.observed} {found.cause} {found.remedy}"


RULES = (
    Rule(
        name="loss_is_not_the_objective",
        title="The policy loss is near 0, which is expected",
        symptom="policy_loss is within ±0.05 while grad_norm is above 0.",
        cause=(
            "This is not an error. While the policy is close to the one that sampled, the ratio is near 1 and the "
            "loss is near minus the mean advantage, which the mean of a group or of the batch makes 0. The gradient is "
            "not 0."
        ),
        remedy="Watch the reward and the KL instead of the loss.",
        check=loss_is_not_the_objective,
    ),
    Rule(
        name="unscorable",
        title="Completions have no reward",
        symptom="reward/unscorable or eval/reward/unscorable is at least 90% in an update.",
        cause=(
            "The reward returned no number for them: the rows lack the columns that it reads, or the judge or service "
            "behind it has stopped to answer. They are left out of every mean, and of the gradient."
        ),
        remedy="Check the log of the reward, and call it with a few completions.",
        check=unscorable,
    ),
    Rule(
        name="dead_gradient",
        title="The gradient is 0",
        symptom="grad_norm is exactly 0 in five consecutive updates. The run stops.",
        cause=(
            "No completion could be scored, all rewards are equal, every completion is empty or masked, or the loss "
            "does not depend on any trainable parameter."
        ),
        remedy=(
            "Check the reward on a few completions, the prompts and the chat template, rollout.max_new_tokens with "
            "method.mask_truncated_completions, and which parameters are frozen."
        ),
        check=dead_gradient,
        stops=True,
    ),
    Rule(
        name="stuck_at_ln_2",
        title="The loss stays at ln 2",
        symptom="loss is ln 2 = 0.6931 and margin is 0 for three updates of a pairwise method.",
        cause=(
            "The learning rate is 0, no trainable parameter receives a gradient, or policy and reference share their "
            "weights."
        ),
        remedy="Check method.learning_rate and the warm-up, the adapter, and that chosen and rejected differ.",
        check=stuck_at_ln_2,
    ),
    Rule(
        name="saturated_margins",
        title="The training pairs are saturated",
        symptom="accuracy is at least 99.5% and loss at most 0.02 on training pairs, as means of five updates.",
        cause="Hardly any gradient is left; further updates only widen margins that are already wide.",
        remedy="Use more pairs or fewer epochs, raise method.beta, or use label smoothing.",
        check=saturated_margins,
    ),
    Rule(
        name="likelihood_displacement",
        title="Chosen and rejected both become less likely",
        symptom="log_ratio/chosen is below -1 nat and log_ratio/rejected is lower still.",
        cause=(
            "The loss only depends on the difference of the two log-ratios; the probability moves to texts outside "
            "the pairs (likelihood displacement, Razin et al. 2024)."
        ),
        remedy=(
            "If the completions get worse, add an SFT term on the chosen answers (method.sft_coef=1) or raise "
            "method.beta."
        ),
        check=likelihood_displacement,
    ),
    Rule(
        name="accuracy_is_not_quality",
        title="Accuracy rises, completions get worse",
        symptom="eval/accuracy has risen by at least 5 points while gold/total has fallen by at least 0.02.",
        cause="Ranking two given texts and sampling a good one are different abilities.",
        remedy="Lower method.learning_rate, raise method.beta, or add an SFT term on the chosen answers.",
        check=accuracy_is_not_quality,
    ),
    Rule(
        name="negative_kl",
        title="The KL estimate is negative",
        symptom="kl/k1 is below -0.001 nats/token.",
        cause=(
            "A KL divergence cannot be negative, but its estimate k1, the mean of log(policy/reference) over "
            "sampled tokens, is unbiased and noisy."
        ),
        remedy=(
            "Ignore single values. If k1 keeps falling, check top-k and top-p sampling: those tokens are not "
            "samples of the policy."
        ),
        check=negative_kl,
    ),
    Rule(
        name="kl_blow_up",
        title="The KL to the reference blows up",
        symptom="kl/exact (or kl/k3) is at least 0.5 nats/token and has tripled within 15 updates.",
        cause="The policy moves away from the reference quickly; fluency usually degrades first.",
        remedy="Raise method.kl_coef or lower method.learning_rate, and read the samples before trusting the reward.",
        check=kl_blow_up,
    ),
    Rule(
        name="reward_grows_with_length",
        title="Reward and length rise together",
        symptom=(
            "reward/total rises while completion/length grows by half or more between the first and last five updates."
        ),
        cause="The reward may favor length over quality.",
        remedy="Compare samples of equal length, or add a reward component that does not grow with length.",
        check=reward_grows_with_length,
    ),
    Rule(
        name="reward_grows_with_repetition",
        title="Reward and repetition rise together",
        symptom="eval/reward/total rises while eval/repetition doubles and reaches 10%.",
        cause="Repeating rewarded phrases is the most common form of reward hacking.",
        remedy="Add a repetition penalty to the reward, or raise method.kl_coef.",
        check=reward_grows_with_repetition,
    ),
    Rule(
        name="completions_collapse",
        title="The completions have collapsed",
        symptom=(
            "eval/completion/distinct falls to 25% or below, or eval/completion/one_word rises to 50% or above, and "
            "the value is at least twice as bad as before training."
        ),
        cause=(
            "The policy gives the same or a one-word completion for every prompt, so its reward does not measure "
            "useful text. This is expected where the data has such answers, such as class labels."
        ),
        remedy=(
            "Continue from an earlier checkpoint with a larger method.kl_coef or a smaller method.learning_rate, or "
            "change the reward that favors it."
        ),
        check=completions_collapse,
    ),
    Rule(
        name="reward_overoptimization",
        title="Reward overoptimization",
        symptom="eval/reward/total has risen and gold/total has fallen in each of the last three evaluations.",
        cause="The policy exploits errors of the reward (Gao et al. 2023).",
        remedy="Use an earlier checkpoint; raise method.kl_coef or train a better reward model.",
        check=reward_overoptimization,
    ),
    Rule(
        name="samples_become_unlikely",
        title="Samples become unlikely under the reference",
        symptom="eval/reference_logp falls to 1.5 times its value before training and by at least 0.25 nats/token.",
        cause="Broken words and sentences look like this; pair accuracy and most rewards do not detect them.",
        remedy=(
            "Read the samples. Lower method.learning_rate, train for fewer updates, or strengthen the constraint to "
            "the reference (method.beta, method.kl_coef, an SFT term)."
        ),
        check=samples_become_unlikely,
    ),
    Rule(
        name="zero_variance_groups",
        title="Most groups have zero reward variance",
        symptom="group/frac_reward_zero_std is at least 80% over five updates.",
        cause="Group-relative advantages of equal rewards are 0, so most of each rollout carries no gradient.",
        remedy=(
            "Use easier or harder prompts, a larger method.group_size, a higher rollout.temperature, a graded "
            "reward instead of a binary one, or dynamic sampling (method.dynamic_sampling)."
        ),
        check=zero_variance_groups,
    ),
    Rule(
        name="completions_truncated",
        title="No completion reaches its end",
        symptom="completion/finished is 0 for three updates.",
        cause=(
            "The limit is too low for this model, or the model has not learned to stop. It does no harm if the "
            "reward can score an unfinished text."
        ),
        remedy=(
            "Raise rollout.max_new_tokens or method.missing_eos_penalty; without a reward (distillation), mix in "
            "completions of the data with method.on_policy=0.5."
        ),
        check=completions_truncated,
    ),
    Rule(
        name="high_clip_fraction",
        title="Many tokens are clipped",
        symptom="clip_fraction is at least 30% for three updates.",
        cause=(
            "The policy moves further in one update than the clip range allows; clipped tokens carry no gradient "
            "(with method.loss=cispo, a bounded one)."
        ),
        remedy="Lower method.learning_rate or method.epochs.",
        check=high_clip_fraction,
    ),
    Rule(
        name="sampler_mismatch",
        title="The sampler differs much from the policy",
        symptom=(
            "rollout/is_eff_sample_size is below 50%, rollout/is_clipped above 20% or rollout/is_mean below 0.5, as "
            "means of three updates."
        ),
        cause=(
            "Completions come from another distribution than the policy (other kernels, precision or weights, top-k or "
            "top-p), and the importance weights that correct for it are very unequal or small."
        ),
        remedy=(
            "Use the policy's precision (rollout.dtype), no top-k, top-p and min-p, a mode of token level "
            "(method.rollout_importance_sampling_mode), or a lower method.learning_rate."
        ),
        check=sampler_mismatch,
    ),
)
