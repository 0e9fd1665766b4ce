"""Bias and signal-to-noise ratio of a gradient estimator, from its gradients of independent updates.

    g_k = an estimator's gradient of update k,  r_k = an unbiased estimator's gradient of the same samples,  k = 1 … K
    scale = E[g]·E[r] / |E[r]|²              bias = |E[g]/scale − E[r]| / |E[r]|             cosine = 1/√(1 + bias²)
    SNR   = |E[g]|² / tr Cov(g)

A scale is not a bias: AdamW and the clip of the gradient norm remove it. The SNR of an update is the inverse of the
gradient noise scale in units of the batch, B_simple = tr Σ / |G|² with Σ the covariance of one sample's gradient and
tr Cov(g) = tr Σ / B (McCandlish et al. 2018, "An empirical model of large-batch training", arXiv 1812.06162, section
2.2). Products of two expectations are means over pairs of different updates, which are unbiased: the noise of one
gradient with itself does not count. As g and r share their samples, what they have in common cancels in the bias.

Axes: K updates, D coordinates of a gradient or of its sketch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from postrain.evaluation.estimate import Estimate


@dataclass(frozen=True)
class GradientQuality:
    """Of one estimator; each with the 95 % interval of its jackknife over updates."""

    scale: float
    """E[g] in units of E[r], along E[r]."""
    bias: Estimate
    cosine: Estimate
    snr: Estimate


def gradient_quality(gradients: Tensor, unbiased: Tensor) -> GradientQuality:
    """The quality of an estimator from its gradients and those of an unbiased one on the same samples, [K, D] each.

    Raises ValueError for fewer than three updates.
    """
    if len(gradients) < 3 or gradients.shape != unbiased.shape:
        raise ValueError(f"expected gradients of the same, at least three updates, got {tuple(gradients.shape)}")
    products = tuple((one @ other.T).double().cpu() for one, other in _pairs(gradients, unbiased))
    whole = [*range(len(gradients))]
    scale, *values = _statistics(products, whole)
    without = [_statistics(products, whole[:k] + whole[k + 1 :])[1:] for k in whole]
    squared, snr = (
        Estimate.jackknife(value, each) for value, each in zip(values, zip(*without, strict=True), strict=True)
    )
    if not all(math.isfinite(one) for one in (squared.value, squared.low, squared.high)):
        # The reference gradient does not stand out from the noise, with all updates or without one of them.
        squared = Estimate(value=squared.value, low=0.0, high=math.inf, n=squared.n)
    bias = _mapped(squared, lambda value: math.sqrt(max(0.0, value)))
    cosine = _mapped(bias, lambda value: 1 / math.sqrt(1 + value**2))
    return GradientQuality(scale, bias, cosine, _mapped(snr, lambda value: max(0.0, value)))


def _mapped(one: Estimate, change: Callable[[float], float]) -> Estimate:
    """An estimate of a monotone function of the value."""
    low, high = sorted((change(one.low), change(one.high)))
    return Estimate(value=change(one.value), low=low, high=high, n=one.n)


def _pairs(gradients: Tensor, unbiased: Tensor) -> Sequence[tuple[Tensor, Tensor]]:
    return (gradients, gradients), (gradients, unbiased), (unbiased, unbiased)


def _statistics(products: Sequence[Tensor], kept: Sequence[int]) -> tuple[float, float, float]:
    """Scale, squared bias and SNR from the products g·g, g·r and r·r of the kept updates, [K, K] each. The last two are
    differences of unbiased estimates, and may be below 0."""
    index = torch.tensor(kept)
    own, mixed, other = (between_updates(product[index][:, index]) for product in products)
    noise = float(products[0].diagonal()[index].mean()) - own
    # Without noise and without a gradient, as of constant rewards, there is no signal.
    snr = own / noise if noise > 0 else math.inf if own > 0 else 0.0
    if other <= 0 or mixed <= 0:
        return math.nan, math.inf, snr
    scale = mixed / other
    # |E[g] − scale · E[r]|², where scale · E[r] is the projection of E[g].
    return scale, (own - scale * mixed) / other / scale**2, snr


def between_updates(products: Tensor) -> float:
    """The mean product of two different updates, [K, K]: an unbiased estimate of the product of the expectations."""
    count = len(products)
    return float((products.sum() - products.diagonal().sum()) / (count * (count - 1)))
