"""Intervals of held-out losses and accuracies from the rows of the first and the last evaluation."""

from __future__ import annotations

from math import exp, inf, sqrt

import pytest

from postrain.evaluation.estimate import Estimate, newcombe, student
from postrain.report.held_out import HeldOutRows, read_held_out


def records(**rows):
    """Records of two evaluations, at updates 0 and 5, and of one in between that is not compared."""
    return [
        {"update": update, "metric": name, "totals": totals, "counts": counts}
        for name, (before, after, counts) in rows.items()
        for update, totals in ((0, before), (3, [9.0] * len(before)), (5, after))
    ]


def test_change_of_a_loss_is_paired_row_by_row() -> None:
    saved = read_held_out(records(loss=([1.0, 5.0, 3.0], [0.5, 4.0, 1.5], [1, 1, 1])))
    change = saved["loss"].change()
    # Differences -0.5, -1, -1.5: mean -1, standard deviation 0.5; the losses themselves differ by more.
    half = student(2) * 0.5 / sqrt(3)
    assert (change.value, change.low, change.high, change.n) == pytest.approx((-1.0, -1 - half, -1 + half, 3))


def test_loss_per_token_weighs_rows_by_their_tokens() -> None:
    saved = read_held_out(records(loss=([2.0, 9.0, 4.0], [1.0, 6.0, 4.0], [1, 6, 3])))
    change = saved["loss"].change()
    assert change.value == pytest.approx(-4 / 10)
    # Of 10 tokens 15 nats before and 11 after; without row 1, 2, 3: (13, 10) / 9, (6, 5) / 4, (11, 7) / 7.
    perplexity = saved["loss"].change_of_perplexity(exp(1.5), exp(1.1))
    without = [exp(10 / 9) - exp(13 / 9), exp(5 / 4) - exp(6 / 4), exp(7 / 7) - exp(11 / 7)]
    expected = Estimate.jackknife(exp(1.1) - exp(1.5), without)
    assert (perplexity.value, perplexity.low, perplexity.high, perplexity.n) == pytest.approx(
        (exp(1.1) - exp(1.5), expected.low, expected.high, 3)
    )


def test_change_of_a_perplexity_includes_the_uncertainty_of_the_one_before() -> None:
    # Every row gains exactly 1 nat/token, so the loss falls by 1 ± 0: the perplexity falls by (1 - 1/e) of the one
    # before, whose loss, 4 or 6 nats/token in halves of 16 rows, has the error t(15) · 1 / sqrt(15), on the log scale.
    rows = HeldOutRows([4.0, 6.0] * 8, [3.0, 5.0] * 8, [1.0] * 16)
    change = rows.change_of_perplexity(exp(5), exp(4))
    half = student(15) / sqrt(15)
    assert (rows.change().low, rows.change().high) == (-1, -1)
    assert change.value == pytest.approx(exp(4) - exp(5))
    assert change.low / change.value == pytest.approx(exp(half), rel=0.01)
    assert change.high / change.value == pytest.approx(exp(-half), rel=0.01)


def test_change_of_one_row_in_eight_is_undecided() -> None:
    rows = HeldOutRows([20.0] * 8, [20.0] * 7 + [18.0], [10, 11, 12, 13, 10, 11, 12, 13])
    change, perplexity = rows.change(), rows.change_of_perplexity(5.0, 5 * exp(-2 / 92))
    # -2 nats in 92 tokens. Without row i -2 / (92 - count of row i), without the last row 0.
    expected = Estimate.jackknife(-2 / 92, [-2 / left for left in (82, 81, 80, 79, 82, 81, 80)] + [0.0])
    assert (change.value, change.low, change.high, change.n) == pytest.approx((-2 / 92, expected.low, expected.high, 8))
    assert change.low < 0 < change.high
    assert perplexity.low < 0 < perplexity.high


def test_last_value_has_the_interval_of_its_own_rows() -> None:
    saved = read_held_out(records(loss=([2.0, 9.0], [1.0, 6.0], [1, 4]), parsed=([0, 0, 0], [1, 0, 1], [1, 1, 1])))
    assert saved["loss"].last() == Estimate.ratio([1.0, 6.0], [1, 4])
    assert saved["parsed"].last() == Estimate.share([1, 0, 1])


def test_accuracy_counts_the_rows_that_changed() -> None:
    saved = read_held_out(records(accuracy=([0, 0, 1, 0.5], [1, 0, 1, 1], [1, 1, 1, 1])))
    assert saved["accuracy"].change().value == pytest.approx(1.5 / 4)


def test_rows_that_a_score_does_not_apply_to_are_left_out() -> None:
    counts = [1, 0, 1, 1]
    rows = read_held_out(records(**{"gold/steps": ([0, 0, 0, 1], [1, 0, 1, 1], counts)}))["gold/steps"]
    assert rows.n == 3
    # As `evaluate` has it: Wilson's interval of 3 in 3, which has a width, and the paired difference of three shares.
    assert rows.last() == Estimate.share([1, 1, 1])
    assert rows.change() == Estimate.paired([1, 1, 1], [0, 0, 1])
    # Scores of different completions are two shares, 1 in 2 before and 3 in 3 after.
    other = HeldOutRows([0, 1, 0, 0], [1, 0, 1, 1], counts, [1, 1, 0, 0])
    assert (other.n, other.change()) == (1, newcombe(0.5, 1, 2))


def test_length_of_completions_is_not_a_share() -> None:
    # Every completion is one token longer: a share would have the bounds -1 and 1.
    rows = HeldOutRows([4, 8, 6], [5, 8, 7], [1, 1, 1])
    assert rows.change() == Estimate.mean([1, 0, 1])


def test_change_of_a_mean_over_sampled_tokens_is_a_difference_of_ratios_over_the_same_prompts() -> None:
    sampled = records(kl=([0.0, 0.0, 0.0], [6.0, 2.0, 4.0], [3, 4, 2]))
    sampled[0]["counts"] = [5, 1, 2]
    change = read_held_out(sampled)["kl"].change()
    # Without row 1, 2, 3: 6 / 6, 10 / 5, 8 / 7.
    expected = Estimate.jackknife(12 / 9, [1, 2, 8 / 7])
    assert (change.value, change.low, change.high, change.n) == pytest.approx((12 / 9, expected.low, expected.high, 3))


def test_change_has_an_interval_if_a_completion_is_longer_than_all_before_training() -> None:
    # Before training a loss of 0 over 4 tokens; after it 26 / 16. Without row 1: 6 / 6, without another: 24 / 14.
    change = HeldOutRows([0.0] * 4, [20.0, 2.0, 2.0, 2.0], [10, 2, 2, 2], [1] * 4).change()
    # The mean 43 / 28 is 15 / 28 above the first and 5 / 28 below the others: a sum of squares of 300 / 784.
    half = student(3) * sqrt(3 / 4 * 300 / 784)
    assert (change.value, change.low, change.high) == pytest.approx((1.625, 1.625 - half, 1.625 + half))


def test_change_has_no_interval_if_one_completion_has_all_tokens() -> None:
    change = HeldOutRows([0.0, 0.0], [2.0, 0.0], [4, 0], [1, 1]).change()
    assert (change.value, change.low, change.high) == (0.5, -inf, inf)


def test_rows_of_other_data_and_damaged_lines_give_no_interval() -> None:
    changed = records(loss=([1.0], [2.0], [3]))
    changed[-1] |= {"totals": [1.0, 2.0], "counts": [1, 3]}
    assert read_held_out([*changed, {"update": 5, "metric": "loss", "totals": "x"}, {"totals": [None]}]) == {}
    assert read_held_out(records(loss=([1.0], [2.0], [3]))[:1]) == {}
    assert read_held_out(records(loss=([1.0], [2.0], [3])))["loss"] == HeldOutRows([1.0], [2.0], [3.0])


def test_perplexity_of_two_very_different_rows_has_finite_bounds() -> None:
    saved = read_held_out(records(loss=([90.0, 13.0], [90.5, 13.4], [1, 9])))["loss"]
    bounds = saved.perplexity(20.0)
    assert (bounds.value, bounds.low < 20.0 < bounds.high < float("inf")) == (20.0, True)
