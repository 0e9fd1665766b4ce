"""The learning-rate schedule: worked numbers."""

import pytest

from postrain.methods.optim import lr_factor


def test_learning_rate_factor_warms_up_and_decays():
    # 10 updates, 20 % warm-up: ½ and 1, then down to 1/8 in 8 updates
    linear = [lr_factor("linear", update, 10, 0.2) for update in range(10)]
    assert linear == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert lr_factor("cosine", 6, 10, 0.2) == pytest.approx(0.5)
    assert [lr_factor("constant", update, 10, 0.0) for update in (0, 9)] == [1.0, 1.0]
