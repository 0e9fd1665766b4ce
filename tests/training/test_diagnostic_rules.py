"""Each rule with a history that it applies to, and a similar one that it does not apply to."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest

from postrain.metrics import declared
from postrain.training.diagnostic_checks import History
from postrain.training.diagnostic_rules import RULES, Rule

LN_2 = math.log(2)
BY_NAME = {rule.name: rule for rule in RULES}


def ramp(name: str, start: float, end: float, count: int) -> list[dict[str, float]]:
    return [{name: start + (end - start) * i / (count - 1)} for i in range(count)]


def join(*columns: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for entry in row for name, value in entry.items()} for row in zip(*columns, strict=True)]


def weights(mean: float, size: float, clipped: float) -> dict[str, float]:
    return {"rollout/is_mean": mean, "rollout/is_eff_sample_size": size, "rollout/is_clipped": clipped}


STILL = [{"loss": LN_2, "margin": 0.0, "grad_norm": 0.3, "learning_rate": 1e-3}] * 3
EVALS = join(ramp("eval/reward/total", 0.1, 0.9, 3), ramp("gold/total", 0.6, 0.2, 3))
KL = [{"kl/exact": 0.1}] * 10 + [{"kl/exact": 0.9}] * 10

APPLIES: list[tuple[str, History, str]] = [
    ("loss_is_not_the_objective", [{"policy_loss": -3e-9, "grad_norm": 0.4}], "-3.0e-09"),
    ("dead_gradient", [{"grad_norm": 0.0, "advantage/mean_abs": 0.0}] * 5, "Every completion has the same reward"),
    ("dead_gradient", [{"grad_norm": 0.0}] * 5, "which parameters are frozen"),
    ("dead_gradient", [{"grad_norm": 0.0, "completion/length": 0.0}] * 5, "empty"),
    ("dead_gradient", [{"grad_norm": 0.0, "advantage/mean_abs": 0.0, "completion/masked": 1.0}] * 5,
     "Every completion was cut at rollout.max_new_tokens"),
    ("unscorable", [{"reward/unscorable": 0.0}, {"reward/unscorable": 1.0}], "100% of the completions have no reward"),
    ("unscorable", [{"reward/unscorable": 0.5, "eval/reward/unscorable": 0.9}], "(eval/reward/unscorable)"),
    ("stuck_at_ln_2", STILL, "share their weights"),
    ("stuck_at_ln_2", [entry | {"learning_rate": 0.0} for entry in STILL], "The learning rate is 0"),
    ("stuck_at_ln_2", [entry | {"grad_norm": 0.0} for entry in STILL], "all are frozen"),
    ("stuck_at_ln_2", [entry | {"margin": 3e-8} for entry in STILL], "share their weights"),
    ("saturated_margins", [{"accuracy": 1.0, "loss": 0.01, "margin": 8.0}] * 5, "margin of 8.0"),
    ("saturated_margins", [{"accuracy": 1.0, "loss": 0.01, "margin": 8.0, "eval/accuracy": 0.9}] * 5, "accuracy: 90%"),
    ("likelihood_displacement", [{"log_ratio/chosen": -2.0, "log_ratio/rejected": -9.0}] * 5, "-2.0 nats"),
    ("accuracy_is_not_quality", [{"eval/accuracy": 0.5, "gold/total": 0.7}, {"eval/accuracy": 0.9, "gold/total": 0.6}],
     "0.70 to 0.60"),
    ("negative_kl", [{"kl/k1": -0.02, "kl/exact": 0.03}], "exact KL of the same tokens is 0.03"),
    ("negative_kl", [{"kl/k1": -0.02}], "-0.02"),
    # The last five of twenty against the sixth to tenth: 0.9 against 0.1.
    ("kl_blow_up", KL, "from 0.1 to 0.9"),
    ("kl_blow_up", [{"kl/k3": entry["kl/exact"]} for entry in KL], "kl/k3"),
    # Means of the first and last five of fifteen from 10 to 24: 12 and 22.
    ("reward_grows_with_length", join(ramp("reward/total", 0, 1, 15), ramp("completion/length", 10, 24, 15)),
     "12 to 22"),
    ("reward_grows_with_repetition", [{"eval/reward/total": 0.1, "eval/repetition": 0.05},
                                      {"eval/reward/total": 0.9, "eval/repetition": 0.4}], "5% to 40%"),
    ("completions_collapse", [{"eval/completion/distinct": 1.0}, {"loss": 1.0}, {"eval/completion/distinct": 0.125}],
     "12% of the completions are different (100% before training)"),
    ("completions_collapse", [{"eval/completion/distinct": 1.0, "eval/completion/one_word": 0.0},
                              {"eval/completion/distinct": 1.0, "eval/completion/one_word": 0.9}], "90% have at most"),
    ("reward_overoptimization", EVALS, "0.60 to 0.20"),
    # -1.69 is below 1.5 * -0.56 = -0.84 and more than 0.25 nats below -0.56.
    ("samples_become_unlikely", [{"eval/reference_logp": -0.56}, {"margin": 4.0, "eval/reference_logp": -1.69}],
     "from -0.56 before training to -1.69"),
    ("samples_become_unlikely", [{"eval/reference_logp": -2.0}, {"reward/total": 1.0, "eval/reference_logp": -3.1}],
     "-3.10"),
    ("samples_become_unlikely", [{"eval/reference_logp": -2.0}, {"eval/win_rate": 0.9, "eval/reference_logp": -3.1}],
     "method.beta"),
    ("zero_variance_groups", [{"group/frac_reward_zero_std": 0.9, "reward/total": 0.1}] * 5, "90% of the groups"),
    ("completions_truncated", [{"completion/finished": 0.0, "reward/total": 0.0}] * 3, "missing_eos_penalty"),
    ("completions_truncated", [{"completion/finished": 0.0}] * 3, "method.on_policy=0.5"),
    ("high_clip_fraction", [{"clip_fraction": 0.4}] * 3, "40%"),
    ("sampler_mismatch", [weights(1.0, 0.4, 0.0)] * 3, "size of 40%"),
    ("sampler_mismatch", [weights(0.9, 0.9, 0.3)] * 3, "30% of them"),
    ("sampler_mismatch", [weights(0.4, 1.0, 0.0)] * 3, "exclude much of the distribution"),
]  # fmt: skip

NOT_APPLIES: list[tuple[str, History]] = [
    ("loss_is_not_the_objective", [{"policy_loss": -0.2, "grad_norm": 0.4}]),
    ("loss_is_not_the_objective", [{"loss": 0.0, "grad_norm": 0.4}]),
    ("loss_is_not_the_objective", [{"policy_loss": -3e-9, "grad_norm": 0.4, "reward/greedy": 0.5}]),
    ("dead_gradient", [{"grad_norm": 0.0}] * 4),
    ("dead_gradient", [{"grad_norm": 0.0}] * 4 + [{"grad_norm": 1e-12}]),
    ("unscorable", [{"reward/unscorable": 1.0}, {"reward/unscorable": 0.8}]),
    ("stuck_at_ln_2", STILL[:2]),
    ("stuck_at_ln_2", [*STILL[:2], STILL[0] | {"margin": 1e-5}]),
    ("saturated_margins", [{"accuracy": 1.0, "loss": 0.01, "margin": 8.0}] * 4 + [{"accuracy": 0.9, "loss": 0.01,
                                                                                 "margin": 8.0}]),
    ("saturated_margins", [{"accuracy": 1.0, "loss": 0.3, "margin": 1.0}] * 5),
    ("accuracy_is_not_quality", [{"eval/accuracy": 0.5, "gold/total": 0.7}, {"eval/accuracy": 0.9, "gold/total": 0.8}]),
    ("likelihood_displacement", [{"log_ratio/chosen": 0.5, "log_ratio/rejected": -9.0}] * 5),
    ("negative_kl", [{"kl/k1": -1e-7}]),
    ("kl_blow_up", [{"kl/exact": 0.9}] * 20),
    ("kl_blow_up", [{"kl/exact": 0.001}] * 10 + [{"kl/exact": 0.02}] * 10),
    ("reward_grows_with_length", join(ramp("reward/total", 0, 1, 15), ramp("completion/length", 20, 24, 15))),
    ("reward_grows_with_length", join(ramp("reward/total", 1, 0, 15), ramp("completion/length", 10, 24, 15))),
    ("reward_grows_with_repetition", [{"eval/reward/total": 0.1, "eval/repetition": 0.3},
                                      {"eval/reward/total": 0.9, "eval/repetition": 0.3}]),
    ("completions_collapse", [{"eval/completion/distinct": 1.0}, {"eval/completion/distinct": 0.4}]),
    # Class labels are short and alike before training.
    ("completions_collapse", [{"eval/completion/distinct": 0.2, "eval/completion/one_word": 1.0}] * 3),
    ("reward_overoptimization", EVALS[:2]),
    ("reward_overoptimization", join(ramp("eval/reward/total", 0.1, 0.9, 3), ramp("gold/total", 0.2, 0.6, 3))),
    ("samples_become_unlikely", [{"margin": 4.0, "eval/reference_logp": -1.69}]),
    ("samples_become_unlikely", [{"eval/reference_logp": -0.56}, {"margin": 4.0, "eval/reference_logp": -0.8}]),
    # 1.5 times -0.1, but only a tenth of a nat: samples at a temperature near 0.
    ("samples_become_unlikely", [{"eval/reference_logp": -0.1}, {"margin": 4.0, "eval/reference_logp": -0.2}]),
    # More likely than before (a sharper policy); and SFT, which is meant to leave the reference's text.
    ("samples_become_unlikely", [{"eval/reference_logp": -2.0}, {"reward/total": 1.0, "eval/reference_logp": -0.4}]),
    ("samples_become_unlikely", [{"eval/reference_logp": -0.56}, {"loss": 1.0, "eval/reference_logp": -5.0}]),
    ("zero_variance_groups", [{"group/frac_reward_zero_std": 0.9, "reward/total": 0.1}] * 4
     + [{"group/frac_reward_zero_std": 0.1}]),
    # Four of five groups have equal rewards and all five a gradient: advantages that are not relative to the group.
    ("zero_variance_groups", [{"group/frac_reward_zero_std": 0.8, "group/with_gradient": 5.0,
                               "group/prompts_sampled": 5.0, "reward/total": 0.1}] * 5),
    ("completions_truncated", [{"completion/finished": 0.0}] * 2 + [{"completion/finished": 0.1}]),
    ("high_clip_fraction", [{"clip_fraction": 0.4}, {"clip_fraction": 0.1}, {"clip_fraction": 0.4}]),
    ("sampler_mismatch", [weights(0.9, 0.6, 0.1)] * 3),
    ("sampler_mismatch", [weights(1.0, 0.1, 0.0)] * 2),
]  # fmt: skip


@pytest.mark.parametrize(("name", "history", "expected"), APPLIES)
def test_rule_applies(name: str, history: History, expected: str) -> None:
    text = BY_NAME[name].message(history)
    assert text is not None
    assert expected in text
    assert "\n" not in text


@pytest.mark.parametrize(("name", "history"), NOT_APPLIES)
def test_rule_does_not_apply(name: str, history: History) -> None:
    assert BY_NAME[name].message(history) is None


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_has_test_cases_and_ignores_unknown_metrics(rule: Rule) -> None:
    assert rule.name in {name for name, *_ in APPLIES}
    assert rule.name in {name for name, _ in NOT_APPLIES}
    assert rule.message([{"some/metric": 1.0}]) is None
    assert rule.message([{}] * 30) is None


class Reads(dict[str, float]):
    """Metrics of an update that record which names are read."""

    names: ClassVar[set[str]] = set()

    def __contains__(self, name: object) -> bool:
        self.names.add(str(name))
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return super().get(name, default)


def test_every_metric_a_rule_reads_is_declared() -> None:
    for name, history, _ in APPLIES:
        assert BY_NAME[name].message([Reads(entry) for entry in history]) is not None
    assert "eval/reference_logp" in Reads.names
    assert [name for name in sorted(Reads.names) if declared(name) is None] == []
