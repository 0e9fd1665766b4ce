"""Calls of a chosen loss or advantage on a small batch, before the run starts, and the check of its values.

Axes: P prompts, G completions of a prompt, B completions, T completion tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from postrain.errors import ConfigError
from postrain.losses.policy_gradient import weighted_sum
from postrain.losses.policy_losses import PolicyTerms
from postrain.methods.chosen_function import ChosenFunction, check_tensor

PROBE_MASK = torch.tensor([[True, True, True], [True, True, False]])


def check_loss(loss: ChosenFunction, selected: Tensor | None) -> None:
    """Raises ConfigError unless the loss of two completions is a tensor [B, T] or [B, 1] that depends on `logps` and is
    finite, with its gradient, inside the mask."""
    logps = torch.tensor([[-0.1, -0.7, -1.5], [-0.4, -2.0, 0.0]], requires_grad=True)
    advantages = torch.tensor([[1.0], [-1.0]]) * PROBE_MASK
    old_logps = (logps.detach() - 0.1) * PROBE_MASK
    found = loss(logps, old_logps, advantages, PROBE_MASK, selected=selected)
    values = found.loss_BT if isinstance(found, PolicyTerms) else found
    check_tensor(loss, values, {"[B, T]": (2, 3), "[B, 1]": (2, 1)}, gradient=True)
    total = weighted_sum(values, PROBE_MASK, torch.ones(2))
    (gradient,) = torch.autograd.grad(total, logps)
    if not (total.isfinite() and gradient[PROBE_MASK].isfinite().all()):
        raise ConfigError(
            f"{loss.setting}: expected a finite loss with a finite gradient inside the mask, got a loss of "
            f"{float(total.detach()):g}; advantages and log-probabilities are 0 outside of it"
        )


def check_advantage(estimate: ChosenFunction) -> None:
    """Raises ConfigError unless the advantages of rewards [P, G] are a tensor [P, G], finite also in groups of equal
    rewards and beside an unscorable one."""
    rewards = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 0.0, torch.nan]])
    lengths, one = torch.tensor([[1, 2, 3], [2, 2, 4], [1, 2, 2]]), torch.tensor(1.0)
    found = estimate(rewards, lengths=lengths, greedy_rewards=rewards[:, 0], batch_std=one)
    check_tensor(estimate, found, {"[P, G]": rewards.shape}, gradient=False)
    check_advantages(estimate, rewards, found)


def check_advantages(estimate: ChosenFunction, reward_PG: Tensor, advantage_PG: Tensor) -> None:
    """Raises ConfigError if the advantage of a known reward is not finite."""
    bad_P = (~advantage_PG.isfinite() & ~reward_PG.isnan()).any(1)
    if bad_P.any():
        first = int(bad_P.int().argmax())
        rewards, advantages = (
            ", ".join(f"{value:.4g}" for value in each[first].tolist()) for each in (reward_PG, advantage_PG)
        )
        raise ConfigError(
            f"{estimate.setting}: expected finite advantages, got {advantages} for the rewards {rewards}; return 0 for "
            "equal rewards, and leave NaN, an unscorable reward, out of means (nanmean)"
        )
