"""The public losses: worked numbers, and equality with the loss of the method on the same batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from postrain import losses
from postrain.data.kinds.preference import Pairs
from postrain.data.kinds.unpaired_preference import UnpairedPreferences
from postrain.methods import ppo
from postrain.methods.nash_md import Experience
from postrain.types import Rows
from tests.methods.builders import float64_model, make_method, pairs, plain_logps, sequence_logps, unpaired_preferences
from tests.methods.test_group_relative import rollout

# Two completions of 2 and 1 tokens; ratios 1.5 and 1, and 0.5.
LOGPS, OLD = torch.tensor([[1.5, 1.0], [0.5, 1.0]]).log(), torch.zeros(2, 2)
MASK = torch.tensor([[True, True], [True, False]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # A = 1: −min(1.5, 1.28) and −1, their mean −1.14; A = −1: −min(−0.5, −0.8) = 0.8; the mean of both.
        ({}, (-1.14 + 0.8) / 2),
        # The mean of all three tokens; the sum over two completions of up to 4 tokens.
        ({"loss_type": "dapo"}, (-2.28 + 0.8) / 3),
        ({"loss_type": "bnpo"}, (-2.28 + 0.8) / 3),
        ({"loss_type": "dr_grpo", "max_tokens": 4}, (-2.28 + 0.8) / 8),
        # √1.5 = 1.22 is not clipped.
        ({"loss": "gspo"}, (-(1.5**0.5) + 0.8) / 2),
        # −1.28 · ln 1.5 and 0; +0.8 · ln 0.5.
        ({"loss": "cispo"}, (-1.28 * math.log(1.5) / 2 + 0.8 * math.log(0.5)) / 2),
        # k2 = ½ ln² of each ratio to a reference of 0.
        (
            {"ref_logps": OLD, "beta": 2.0, "kl_estimator": "k2"},
            (-1.14 + 0.8 + math.log(1.5) ** 2 / 2 + math.log(0.5) ** 2) / 2,
        ),
    ],
)
def test_grpo_loss_of_worked_ratios_for_each_option(options: Any, expected: float) -> None:
    for advantages in (torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])):
        found = losses.grpo(LOGPS, OLD, advantages, MASK, clip_low=0.2, clip_high=0.28, **options)
        assert found.shape == ()
        assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # A = 1: −min(1.5, 1.2) and −1, their mean −1.1; A = −1: −min(−0.5, −0.8) = 0.8; the mean of both.
        (losses.grpo, (-1.1 + 0.8) / 2),
        (losses.reinforce, (-1.1 + 0.8) / 2),
        # Ratios of completions 1.5 and ½: −1.2 and 0.8.
        (losses.rloo, (-1.2 + 0.8) / 2),
    ],
)
def test_masks_of_zeros_and_ones_select_tokens_as_booleans_do(
    function: Callable[..., Tensor], expected: float, dtype: torch.dtype
) -> None:
    logps = LOGPS.masked_fill(~MASK, torch.nan) if function is not losses.rloo else LOGPS
    found = function(logps, OLD, torch.tensor([1.0, -1.0]), MASK.to(dtype))
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("function", [losses.grpo, losses.ppo])
def test_delta_bounds_the_ratio_of_negative_advantages(function: Callable[..., Tensor]) -> None:
    logps, mask = torch.tensor([[10.0]]).log(), torch.tensor([[True]])
    found = [function(logps, torch.zeros(1, 1), torch.tensor([[-1.0]]), mask, delta=delta) for delta in (None, 4.0)]
    assert [float(loss) for loss in found] == pytest.approx([10, 4])
    # Positive advantages have the upper clip: −1.5 · 1.
    clipped = function(logps, torch.zeros(1, 1), torch.tensor([[1.0]]), mask, clip_low=0.2, clip_high=0.5)
    assert float(clipped) == pytest.approx(-1.5)


def invalid(name: str) -> Any:
    """An option value outside its literal type."""
    return name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.grpo(LOGPS, OLD, OLD, MASK, beta=0.1), "ref_logps: beta=0.1"),
        (lambda: losses.grpo(LOGPS, OLD, OLD, MASK, delta=1.1), "delta=1.1: expected a bound above the upper clip"),
        (lambda: losses.grpo(LOGPS, OLD, OLD, MASK, loss_type="dr_grpo"), "max_tokens: loss_type=dr_grpo"),
        (lambda: losses.dpo(OLD, OLD, OLD, OLD, loss_type="ipo"), "chosen_lengths, rejected_lengths: ipo"),
        (
            lambda: losses.dpo(OLD, OLD, OLD, OLD, loss_type="hinge", label_smoothing=0.1),
            "no effect on loss_type",
        ),
        (lambda: losses.kl(OLD, OLD, invalid("k4")), "estimator='k4': choose k1, k2 or k3"),
        (lambda: losses.sft(OLD, MASK, reduction=invalid("average")), "reduction='average': choose mean, sum or none"),
    ],
)
def test_invalid_or_contradicting_options_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def sums(model: Any, batch: Rows) -> tuple[Tensor, Tensor]:
    """Log-probability and length of each completion, [B] each."""
    return sequence_logps(model, batch), torch.tensor([int(mask.sum()) for mask in batch.supervised])


def of_pairs(function: Callable[..., Tensor]) -> tuple[Any, Callable[..., Tensor]]:
    """Pairs, and a loss as a function of log-probabilities and lengths under the policy and under the reference."""

    def compute(policy: Any, reference: Any, batch: Pairs, prepared: Any) -> Tensor:
        of_policy, of_reference = (
            [sums(model, side) for side in (batch.chosen, batch.rejected)] for model in (policy, reference)
        )
        return function(*of_policy[0], *of_policy[1], of_reference[0][0], of_reference[1][0])

    return pairs(5), compute


def of_rollout(function: Callable[..., Tensor]) -> tuple[Any, Callable[..., Tensor]]:
    """A rollout with ratios other than 1, and a loss as a function of its log-probabilities and advantages."""
    batch, _ = rollout([1.0, -0.5, 2.0, -1.0])
    moved = replace(batch, logps_BT=batch.logps_BT - 0.3 * (batch.logps_BT != 0))

    def compute(policy: Any, reference: Any, batch: Any, prepared: Any) -> Tensor:
        logps_BT = pad_sequence(plain_logps(policy, batch.rows), batch_first=True)
        return function(logps_BT, batch.logps_BT, batch.advantages_BT, logps_BT != 0)

    return moved, compute


def sft_loss(policy: Any, reference: Any, batch: Rows, prepared: Any) -> Tensor:
    logps_BT = pad_sequence(plain_logps(policy, batch), batch_first=True)
    return losses.sft(logps_BT, logps_BT != 0)


def kto_loss(policy: Any, reference: Any, batch: UnpairedPreferences, prepared: Any) -> Tensor:
    ratios_B = sequence_logps(policy, batch.rows) - sequence_logps(reference, batch.rows)
    return losses.kto(ratios_B, batch.label_B, prepared.baseline_B, beta=0.1)


CASES: dict[str, tuple[Any, Callable[..., Tensor]]] = {
    "dpo": of_pairs(lambda c, m, r, n, rc, rr: losses.dpo(c, r, rc, rr, beta=0.1)),
    "dpo ipo": of_pairs(lambda c, m, r, n, rc, rr: losses.ipo(c, r, rc, rr, chosen_lengths=m, rejected_lengths=n)),
    "dpo aot": of_pairs(lambda c, m, r, n, rc, rr: losses.dpo(c, r, rc, rr, 0.1, loss_type="aot")),
    "dpo aot_unpaired": of_pairs(lambda c, m, r, n, rc, rr: losses.dpo(c, r, rc, rr, 0.1, loss_type="aot_unpaired")),
    "orpo": of_pairs(lambda c, m, r, n, rc, rr: losses.orpo(c / m, r / n)),
    "simpo": of_pairs(lambda c, m, r, n, rc, rr: losses.simpo(c / m, r / n)),
    "cpo": of_pairs(lambda c, m, r, n, rc, rr: losses.cpo(c, r, chosen_lengths=m)),
    "kto": (unpaired_preferences([True, False, True, True]), kto_loss),
    "sft": (pairs(3).chosen, sft_loss),
    "pretrain": (pairs(3).chosen, sft_loss),
    "grpo": of_rollout(losses.grpo),
    "rloo": of_rollout(losses.rloo),
    "reinforce": of_rollout(losses.reinforce),
}


@pytest.mark.parametrize("case", CASES)
def test_public_loss_with_defaults_equals_the_loss_of_the_method(case: str) -> None:
    method, _, loss = case.partition(" ")
    batch, expected = CASES[case]
    policy, reference = float64_model(), float64_model(1)
    changes: dict[str, Any] = {"loss": loss} if loss else {}
    learner = make_method(method, policy, reference=reference, **changes)
    prepared = learner.prepare(batch) if method in ("dpo", "kto") else batch
    mean = learner.loss_sum(prepared).total / learner.denominator(prepared)
    assert mean.item() == pytest.approx(expected(policy, reference, batch, prepared).item(), rel=1e-5)


def test_public_ppo_and_nash_md_losses_equal_those_of_the_methods() -> None:
    policy, (batch, _) = float64_model(), rollout([1.0, -0.5, 2.0, -1.0])
    logps_BT = pad_sequence(plain_logps(policy, batch.rows), batch_first=True)
    mask_BT, old_BT, included_B = logps_BT != 0, batch.logps_BT - 0.3 * (batch.logps_BT != 0), batch.in_loss_B
    nash = Experience(batch.rows, old_BT, batch.advantages_BT, included_B)
    learner = make_method("nash_md", policy)
    mean = learner.loss_sum(nash).total / learner.denominator(nash)
    assert mean.item() == pytest.approx(losses.nash_md(logps_BT, old_BT, batch.advantages_BT, mask_BT).item())
    zeros_BT, returns_BT = torch.zeros_like(old_BT), batch.advantages_BT
    experience = ppo.Experience(batch.rows, old_BT, old_BT, zeros_BT, batch.advantages_BT, returns_BT, included_B)
    metrics = make_method("ppo", policy).double().loss_sum(experience).metrics
    # A new critic returns 0, before and after the rollout.
    values = {
        "policy_loss": losses.ppo(logps_BT, old_BT, batch.advantages_BT, mask_BT),
        "value_loss": losses.ppo_value(zeros_BT, zeros_BT, returns_BT, mask_BT),
    }
    for name, value in values.items():
        assert metrics[name].value() == pytest.approx(value.item())
