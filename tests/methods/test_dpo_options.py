"""Every key of the offline preference methods changes the trained weights; invalid values are one-line errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from postrain.config.check import check
from postrain.config.tree import instantiate
from postrain.errors import ConfigError
from postrain.losses.dpo_variants import LOSSES
from postrain.training.config import TrainConfig
from tests.methods.builders import (
    QUICK,
    defaults,
    flat_gradient,
    float64_model,
    make_method,
    pairs,
    unpaired_preferences,
)
from tests.training_runs import composed, final_state, small_run

Change = tuple[dict[str, Any], dict[str, Any]]
"""The changed settings, to values unlikely to be defaults, and the settings under which they have an effect."""

DPO: list[Change] = [
    *(({"loss": name}, {}) for name in LOSSES if name not in {"sigmoid", "robust", "exo"}),
    ({"loss": "robust"}, {"label_smoothing": 0.1}),
    ({"loss": "exo"}, {"label_smoothing": 0.1}),
    ({"loss": {"sigmoid": 0.8, "bco": 0.2}}, {}),
    ({"use_weighting": True}, {}),
    ({"beta": 0.37}, {}),
    *(
        ({"label_smoothing": 0.1}, {"loss": name})
        for name in ("sigmoid", "sigmoid_norm", "robust", "aot", "aot_unpaired")
    ),
    ({"label_smoothing": 0.2}, {"loss": "exo", "label_smoothing": 0.1}),
    *(({"divergence": name}, {}) for name in ("forward_kl", "js", "alpha")),
    ({"divergence_alpha": 0.13}, {"divergence": "alpha"}),
    ({"ld_alpha": 0.37}, {}),
    ({"sft_coef": 0.37}, {}),
    ({"discopop_tau": 1.3}, {"loss": "discopop"}),
    ({"bco_momentum": 0.13}, {"loss": "bco"}),
    ({"reference_free": True}, {}),
    ({"ref_sync_steps": 1}, {}),
    ({"ref_mixup_alpha": 0.13}, {"ref_sync_steps": 1}),
]
KTO: list[Change] = [
    ({"loss": "apo_zero_unpaired"}, {}),
    ({"beta": 0.37}, {}),
    ({"desirable_weight": 1.9}, {}),
    ({"undesirable_weight": 1.9}, {}),
    ({"reference_free": True}, {}),
    ({"ref_sync_steps": 1}, {}),
    ({"ref_mixup_alpha": 0.13}, {"ref_sync_steps": 1}),
]
CHANGES: dict[str, list[Change]] = {
    "dpo": DPO,
    "ipo": [({"loss": "sigmoid"}, {}), ({"beta": 0.37}, {})],
    "kto": KTO,
    "orpo": [({"odds_coef": 0.37}, {})],
    "simpo": [
        ({"beta": 1.3}, {}),
        ({"gamma_beta_ratio": 0.13}, {}),
        ({"alpha": 0.25}, {}),
        ({"label_smoothing": 0.13}, {}),
    ],
    "cpo": [({"beta": 0.37}, {}), ({"label_smoothing": 0.13}, {}), ({"sft_coef": 0.37}, {})],
}
LOOP = {
    "updates": "method.updates=3",
    "batch_size": "method.batch_size=5",
    "learning_rate": "method.learning_rate=1.3e-5",
    "schedule": "method.schedule=constant",
    "warmup": "method.warmup=1.0",
    "weight_decay": "method.weight_decay=0.5",
    "adam_betas": "method.adam_betas=[0.5,0.9]",
    "adam_eps": "method.adam_eps=1e-3",
    "max_grad_norm": "method.max_grad_norm=1e-6",
}
"""Keys of the training loop, tested with DPO for all methods."""
ELSEWHERE = {
    "_target_",
    "micro_batch_tokens",
    "gradient_checkpointing",
    "dropout",
    "precompute_ref_log_probs",
    "check_learning_rate",
    "num_train_epochs",
}
"""Keys without an effect on a default run, tested in files of their own; the model has no dropout."""

each_change = pytest.mark.parametrize(
    ("method", "change", "beside"),
    [(method, *change) for method, changes in CHANGES.items() for change in changes],
    ids=lambda value: ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else value,
)


def trained_weights(method: str, **settings: Any) -> torch.Tensor:
    """Policy weights after three updates of gradient descent, from a policy that differs from its reference.

    Three updates, because a bias-corrected running mean depends on its momentum from the third on.
    """
    policy = float64_model(0)
    learner = make_method(method, policy, reference=float64_model(1), **settings)
    batch = unpaired_preferences([True, False, True, True, False]) if method == "kto" else pairs(8)
    for _ in range(3):
        learner.accumulated = {}
        for minibatch in learner.minibatches(learner.prepare(batch)):
            loss = learner.loss_sum(minibatch)
            learner.accumulate(loss.metrics)
            gradient = flat_gradient(policy, loss.total)
            with torch.no_grad():
                sizes = [parameter.numel() for parameter in policy.parameters()]
                for parameter, part in zip(policy.parameters(), gradient.split(sizes), strict=True):
                    parameter -= 1e-4 * part.view_as(parameter)
        learner.counters.updates += 1
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


@each_change
def test_each_key_changes_the_update(method, change, beside):
    changed, default = trained_weights(method, **(beside | change)), trained_weights(method, **beside)
    assert torch.isfinite(changed).all()
    assert float((changed - default).abs().max()) > 1e-9


@pytest.mark.parametrize("method", ["dpo", "kto", "orpo", "simpo", "cpo"])
def test_every_key_has_a_case(method):
    tested = {name for change, _ in CHANGES[method] for name in change}
    assert tested | LOOP.keys() | ELSEWHERE >= defaults(method).keys()
    assert tested | LOOP.keys() <= defaults(method).keys()


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache shared by all runs of this file."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("POSTRAIN_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def weights(output, *overrides: str) -> torch.Tensor:
    state = final_state(small_run(output, *QUICK, *overrides))["state_dict"]
    return torch.cat([value.flatten() for name, value in state.items() if name.startswith("policy.")])


@pytest.fixture(scope="module")
def default_weights(tmp_path_factory, cache):
    """The weights of a run with default settings."""
    return weights(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("override", LOOP.values())
def test_each_key_of_the_training_loop_changes_the_update(override, default_weights, tmp_path):
    assert not torch.equal(weights(tmp_path, override), default_weights)


@pytest.mark.parametrize(
    ("method", "override", "line"),
    [
        (
            "dpo",
            "method.loss=hing",
            r"method\.loss: expected one of sigmoid, sigmoid_norm, robust, hinge, .*, got 'hing'",
        ),
        ("dpo", "method.loss={sigmiod:1}", r"method\.loss: expected one of sigmoid, .*, got {'sigmiod': 1}"),
        ("dpo", "method.loss={sigmoid:0}", r"method\.loss: expected .* a number > 0, got {'sigmoid': 0}"),
        ("dpo", "method.beta=0", r"method\.beta: expected a number > 0, got 0"),
        ("ipo", "method.beta=-1", r"method\.beta: expected a number > 0, got -1"),
        ("kto", "method.beta=0", r"method\.beta: expected a number > 0, got 0"),
        ("kto", "method.desirable_weight=0", r"method\.desirable_weight: expected a number > 0, got 0"),
        ("kto", "method.loss=sigmoid", r"method\.loss: expected one of kto, apo_zero_unpaired, got 'sigmoid'"),
        ("simpo", "method.beta=0", r"method\.beta: expected a number > 0, got 0"),
        ("cpo", "method.beta=0", r"method\.beta: expected a number > 0, got 0"),
        ("orpo", "method.odds_coef=-1", r"method\.odds_coef: expected a number >= 0, got -1"),
        ("orpo", "+method.beta=0.1", r"method\.beta: unknown key; .*"),
        *(
            (
                method,
                "method.label_smoothing=0.5",
                r"method\.label_smoothing: expected a number >= 0 and < 0\.5, got .*",
            )
            for method in ("dpo", "simpo", "cpo")
        ),
        ("dpo", "method.reference_free=maybe", r"method\.reference_free: expected true or false, got .*"),
        ("dpo", "method.ref_mixup_alpha=0", r"method\.ref_mixup_alpha: expected a number > 0 and <= 1, got 0"),
        ("dpo", "method.divergence=kl", r"method\.divergence: expected one of reverse_kl, forward_kl, js, alpha, .*"),
    ],
)
def test_invalid_value_is_a_one_line_error(method, override, line):
    with pytest.raises(ConfigError, match=rf"^{line}$"):
        check(composed([f"method={method}", override]), TrainConfig)


def test_weighted_losses_are_read_from_the_command_line():
    config = composed(["method=dpo", "method.loss={sigmoid:0.8,bco:0.2}"])
    check(config, TrainConfig)
    assert instantiate(config["method"]).loss == {"sigmoid": 0.8, "bco": 0.2}
