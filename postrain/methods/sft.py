"""Supervised fine-tuning on demonstrations, with optional penalties on the distance to the initial model.

LoRA-SFT is this method with `adapter=lora`.
"""

from __future__ import annotations

import math
from dataclasses import field
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from postrain import losses
from postrain.errors import ConfigError
from postrain.losses.supervised import SFT_LOSSES, SFTLossName
from postrain.methods.base import Method
from postrain.methods.chosen_function import (
    ChosenFunction,
    ChosenName,
    Options,
    check_tensor,
    choose,
    function_of,
)
from postrain.methods.learning_rates import LearningRates
from postrain.models.scoring import EntropyMode, score, score_with_reference
from postrain.types import LossSum, LRSchedule, Max, Mean, NonNegative, Rows, Size


class SFT(Method):
    """Supervised fine-tuning: the next-token loss on the answers of demonstrations.

        loss = −Σ log π(answer token) / tokens + kl_coef · KL(policy ‖ reference) + l2_coef · Σ (θ − θ₀)²

    `losses.sft` is the first term. The penalties keep the model close to its initial weights; both are off by default.
    """

    kind: ClassVar[str] = "Demonstration"
    expected_change: ClassVar[tuple[str, float]] = ("gold/total", 0.1)
    headline: ClassVar[tuple[str, str, str]] = ("loss", "perplexity", "eval/perplexity")
    rates: ClassVar[LearningRates] = LearningRates(base=2e-5, nano=2e-3, nano_adapter=1e-2, kl_share=0.35)

    batch_size: Size = 32
    schedule: LRSchedule = "cosine"
    dropout: bool = True
    loss: SFTLossName | ChosenName = "nll"
    """Loss of a token. nll: −log π. dft: −π log π with π a constant (dynamic fine-tuning): unlikely tokens count less.
    eaft: −log π times the entropy, at most 1: tokens at which the policy is certain of another answer count less. Or
    package.module.function or file.py:function, which gets (logps, mask), [B, T] each, and `entropy` if it names it."""
    loss_options: Options = field(default_factory=dict)
    """Keyword arguments of the loss, such as {top_k: 20} of eaft."""
    kl_coef: NonNegative = 0.0
    """Weight of the exact KL(policy ‖ reference), a mean over supervised tokens; 0 disables it."""
    l2_coef: NonNegative = 0.0
    """Weight of the squared distance of the trainable parameters from their initial values; 0 disables it."""

    def __post_init__(self, *components: Any) -> None:
        logps = torch.tensor([[-0.1, -0.7], [-2.0, 0.0]], requires_grad=True)
        found = self.token_losses(logps, torch.tensor([[True, True], [True, False]]), logps.detach().abs())
        check_tensor(self.chosen_loss, found, {"[B, T]": (2, 2)}, gradient=True)
        super().__post_init__(*components)

    @cached_property
    def chosen_loss(self) -> ChosenFunction:
        """The function of `loss`."""
        return choose(
            "method.loss",
            self.loss,
            function_of("method.loss", self.loss, SFT_LOSSES),
            inputs=["logps", "mask"],
            offered=["entropy", "reduction"],
            options=self.loss_options,
        )

    def token_losses(self, logps_BT: Tensor, mask_BT: Tensor, entropy_BT: Tensor | None) -> Tensor:
        """The loss of each supervised token, [B, T]."""
        return self.chosen_loss(logps_BT, mask_BT, entropy=entropy_BT, reduction="none")

    def needs_reference(self) -> bool:
        return self.kl_coef > 0

    def logs_kl(self) -> bool:
        return self.kl_coef > 0

    def on_model_attached(self) -> None:
        super().on_model_attached()
        # Before Lightning restores a checkpoint, whose weights are not the initial ones.
        self.initial: list[Tensor] = []
        if self.l2_coef:
            self.initial = [parameter.detach().clone() for parameter in self.trainable_parameters()]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.l2_coef and self.device_mesh is not None:
            raise ConfigError("method.l2_coef: not with trainer.strategy=fsdp, which shards the parameters; use ddp")
        if self.l2_coef:
            now = self.trainable_parameters()
            self.initial = [then.to(parameter) for then, parameter in zip(self.initial, now, strict=True)]

    def loss_sum(self, batch: Rows) -> LossSum:
        tokens = self.denominator(batch)
        metrics: dict[str, Mean | Max] = {}
        entropy: EntropyMode = "constant" if self.chosen_loss.takes("entropy") else "off"
        if self.kl_coef:
            found = score_with_reference(self.policy, self.reference_policy, batch, entropy=entropy)
            log_ratio_BT = (found.logps_BT - found.ref_logps_BT).detach()
            metrics["kl/exact"] = Mean(found.kl_BT.detach().sum(), tokens)
            if tokens:
                metrics["kl/log_ratio_max"] = Max(log_ratio_BT.abs().max())
            penalty = self.kl_coef * found.kl_BT.sum()
        else:
            found = score(self.policy, batch, entropy=entropy)
            penalty = 0.0
        logps_BT, mask_BT = found.logps_BT, found.mask_BT
        loss_BT = self.token_losses(logps_BT, mask_BT, found.entropy_BT) * mask_BT
        loss, counts_B = loss_BT.sum(), mask_BT.sum(1)
        if self.loss != "nll" or self.kl_coef or self.l2_coef:
            nll_B = losses.sft(logps_BT.detach(), mask_BT, reduction="none").sum(1)
            metrics["nll"] = Mean(nll_B.sum(), tokens, (nll_B, counts_B))
        if not self.kl_coef and not self.l2_coef:
            return LossSum(loss, metrics, (loss_BT.detach().sum(1), counts_B))
        if self.l2_coef:
            distance = losses.l2_distance(self.trainable_parameters(), self.initial)
            metrics["l2"] = Mean(distance.detach() * tokens, tokens)
            # The training loop divides by the tokens of the global mini-batch; this micro-batch has `tokens` of them.
            penalty = penalty + self.l2_coef * distance * tokens
        return LossSum(loss + penalty, metrics)

    def derived(self, metrics: dict[str, float]) -> dict[str, float]:
        return {"perplexity": math.exp(min(metrics.get("nll", metrics["loss"]), 50.0))}
