"""An option that the other settings do not use is refused, with the setting that would use it."""

from __future__ import annotations

import pytest

from postrain.errors import ConfigError
from tests.methods.builders import make_method
from tests.tiny import tiny_model
from tests.training_runs import train_config


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "method=ppo method.kl_coef=0 method.adaptive_kl_target=6",
            "adaptive_kl_target=6.0: has no effect without method.kl_coef",
        ),
        (
            "method=ppo method.adaptive_kl_horizon=9",
            "method.adaptive_kl_horizon=9: has no effect without method.adaptive_kl_target; leave it out",
        ),
        (
            "method=grpo method.overlong_penalty=5",
            "overlong_penalty=5.0: has no effect without method.overlong",
        ),
        (
            "method=sft method.num_train_epochs=2 method.updates=7",
            "method.updates=7: method.num_train_epochs=2 sets the length too; write '~method.updates' or",
        ),
        ("method=dpo method.bco_momentum=0.5", "method.bco_momentum=0.5: has no effect without method.loss=bco"),
        ("method=dpo method.discopop_tau=0.5", "method.discopop_tau=0.5: has no effect without method.loss=discopop"),
        ("method=dpo method.divergence_alpha=0.4", "has no effect without method.divergence=alpha; leave it out"),
        ("method=kto method.ref_mixup_alpha=0.5", "has no effect without method.ref_sync_steps above 0; leave it out"),
        ("method=distill reference=nano method.beta=0.3", "has no effect without method.divergence=jsd; leave it out"),
        ("method=distill reference=nano method.skew_alpha=0.3", "without method.divergence=skewed_reverse_kl"),
        ("method=distill reference=nano method.teacher_update_rate=1", "without method.teacher_model_kind=ema"),
        ("method=grpo method.entropy_coef_delta=0.1", "has no effect without method.entropy_target; leave it out"),
        (
            "method=rloo method.rollout_importance_sampling_mode=null method.rollout_importance_sampling_clip_max=2",
            "has no effect without method.rollout_importance_sampling_mode; leave it out",
        ),
        (
            "method=ppo method.epochs=1 method.minibatches_per_epoch=1 method.target_kl=0.1",
            "method.target_kl=0.1: has no effect without method.epochs or method.minibatches_per_epoch above 1; leave",
        ),
        (
            "method=grpo method.multi_objective_aggregation=normalize_then_sum method.scale_rewards=none",
            "method.scale_rewards=none: has no effect without method.multi_objective_aggregation=sum_then_normalize; l",
        ),
        ("method=distill teacher=nano method.teacher_top_k=9", "teacher_top_k=9: has no effect without a teacher beh"),
        (
            "method=sft optim=muon method.adam_eps=1e-4",
            "method.adam_eps: is used by the default optimizer alone",
        ),
        ("method=sft optim=sgd method.adam_betas=[0.5,0.6]", "and optim is SGD; set it under optim, or leave out one"),
    ],
)
def test_option_without_effect_is_refused(words, message):
    with pytest.raises(ConfigError) as caught:
        train_config(words.split())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "method=ppo method.adaptive_kl_target=6 method.adaptive_kl_horizon=9",
        "method=dpo method.loss={sigmoid:0.5,bco:0.5} method.bco_momentum=0.5",
        "method=distill reference=nano method.divergence=skewed_forward_kl method.skew_alpha=0.3",
        "method=sft method.adam_eps=1e-4",
        # The default may be written down.
        "method=dpo method.bco_momentum=0.9",
    ],
)
def test_option_with_an_effect_is_accepted(words):
    train_config(words.split())


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        ("grpo", {"turn_level_advantages": True}, r"^method\.turn_level_advantages: has no effect without an environ"),
        (
            "grpo",
            {"loss": "kl_cov"},
            r"^method\.loss=kl_cov: its penalty needs several optimizer steps per update; set m",
        ),
        ("grpo", {"curriculum": {"decay": 0.1}}, r"^method\.curriculum\.decay=0\.1: has no effect without window"),
    ],
)
def test_setting_without_effect_on_its_components_is_refused(method, settings, message):
    with pytest.raises(ConfigError, match=message):
        make_method(method, tiny_model(), **settings)


def test_critic_warmup_of_the_whole_run_is_refused():
    with pytest.raises(ConfigError, match=r"^method\.critic_warmup=3: .* in any of method\.updates=3; give fewer$"):
        make_method("ppo", tiny_model(), updates=3, critic_warmup=3).on_fit_start()


def test_option_without_effect_is_refused_in_python():
    with pytest.raises(ConfigError, match=r"method\.overlong_penalty=5.0: has no effect"):
        make_method("grpo", tiny_model(), overlong_penalty=5)
