"""The adaptive entropy controller."""

import pytest

from postrain.methods.policy_gradient import EntropyControl
from postrain.types import Mean
from tests.methods.builders import float64_model, make_method


def test_weight_grows_below_the_target_and_there_is_no_bonus_above_it():
    before = EntropyControl(0.1)
    low, high = (before.after(entropy, target=2.0, step=0.005) for entropy in (1.5, 2.5))
    assert (low.coef, low.weight(2.0)) == (pytest.approx(0.105), low.coef)
    assert (high.coef, high.weight(2.0)) == (pytest.approx(0.095), 0.0)
    # Bounds 0 and 1.
    assert EntropyControl(0.001).after(3.0, target=2.0, step=0.005).coef == 0
    assert EntropyControl(0.999).after(1.0, target=2.0, step=0.005).coef == 1


def test_controller_reads_the_entropy_of_the_update_and_resumes():
    method, resumed = (
        make_method("grpo", float64_model(), entropy_target=2.0, entropy_coef_delta=0.25) for _ in range(2)
    )
    # 6 nats over 4 tokens: 1.5 < 2.
    method.accumulated = {"entropy/exact": Mean(6.0, 4.0)}
    method.adapt_entropy()
    assert (method.entropy_weight, method.accumulated["entropy/coef"].value()) == (0.25, 0)
    resumed.load_state(method.state())
    assert resumed.entropy_weight == 0.25
