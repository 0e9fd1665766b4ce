"""The entropy law fitted to the updates of a run, with worked numbers."""

from __future__ import annotations

import json
import math

import pytest

from postrain.errors import ConfigError
from postrain.report.entropy_law import entropy_law


def fit(tmp_path, pairs: list[tuple[float, float]]) -> dict[str, float]:
    """The values of the law for (exp of the entropy, reward) of each update."""
    lines = [{"entropy/exact": math.log(exp), "reward/total": reward} for exp, reward in pairs]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [{"update": 0}, *lines]))
    entropy_law(folder=str(tmp_path), run=str(tmp_path), first=0.5)
    return json.loads((tmp_path / "result.json").read_text())["values"]


def test_law_without_noise_is_found_and_predicts_the_end(tmp_path):
    # R = 1.2 − 0.2 · exp(H), exp(H) from 5.5 down to 1.
    pairs = [(5.5 - 0.5 * step, 1.2 - 0.2 * (5.5 - 0.5 * step)) for step in range(10)]
    found = fit(tmp_path, pairs)
    assert (found["a"], found["b"], found["ceiling"]) == pytest.approx((0.2, 1.2, 1.0))
    assert (found["r2"], found["rmse"]) == pytest.approx((1.0, 0.0), abs=1e-6)
    assert (found["predicted"], found["final"]) == pytest.approx((1.0, 1.0))
    assert (found["entropy_first"], found["entropy_last"]) == pytest.approx((math.log(5.5), 0.0), abs=1e-12)


def test_change_of_the_law_is_an_error_of_the_prediction(tmp_path):
    # The law of the first half, R = 1.2 − 0.2 · exp(H), overestimates the second half by 0.1.
    pairs = [(5.5 - 0.5 * i, 1.2 - 0.2 * (5.5 - 0.5 * i) - 0.1 * (i >= 5)) for i in range(10)]
    found = fit(tmp_path, pairs)
    assert (found["rmse"], found["predicted"] - found["final"]) == pytest.approx((0.1, 0.1))
    assert found["r2"] < 1


def test_short_run_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"9 updates with entropy/exact and reward/total; the law needs at least 10"):
        fit(tmp_path, [(1.0 + i, 0.5) for i in range(9)])
