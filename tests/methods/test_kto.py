"""KTO: worked numbers of its loss and baseline, and batches of one label or of odd size."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.losses.preference import kto, kto_baseline
from postrain.methods.metrics import combine
from tests.methods.builders import flat_gradient, float64_model, make_method, sequence_logps, unpaired_preferences
from tests.training_runs import records, small_run


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_kto_loss_of_worked_log_ratios():
    labels = torch.tensor([True, False, True, False])
    # l = 0: 1 − σ(0) = ½ for both labels; β (l − z) = ½ (2 ln 3 + 1 − 1) = ln 3: desirable 1 − ¾, undesirable ¾
    ratio, baseline = tensor(0, 0, 2 * log(3) + 1, 2 * log(3) + 1), tensor(0, 0, 1, 1)
    assert kto(ratio, labels, baseline, beta=0.5, reduction="none").tolist() == pytest.approx([0.5, 0.5, 0.25, 0.75])


def test_kto_gradient_at_zero_is_a_quarter_of_beta():
    ratio = tensor(0, 0).requires_grad_(True)
    loss = kto(ratio, torch.tensor([True, False]), tensor(0, 0), beta=0.2, reduction="sum")
    # σ′(0) = ¼: the log-ratio of desirable completions rises, of undesirable ones falls
    assert torch.autograd.grad(loss, ratio)[0].tolist() == pytest.approx([-0.05, 0.05])


def test_kto_is_finite_for_large_log_ratios():
    ratio = torch.tensor([-500.0, 500.0, -500.0, 500.0], requires_grad=True)
    loss = kto(ratio, torch.tensor([True, True, False, False]), torch.zeros(4), beta=1.0, reduction="none")
    assert loss.tolist() == pytest.approx([1, 0, 0, 1])
    assert torch.isfinite(torch.autograd.grad(loss.sum(), ratio)[0]).all()


def test_baseline_is_the_mean_log_ratio_clamped_at_0():
    # 9 / 3; a KL is not negative
    assert kto_baseline(tensor(9), tensor(3)).item() == 3
    assert kto_baseline(tensor(-9), tensor(3)).item() == 0


def test_baseline_is_measured_on_unrelated_completions():
    batch = unpaired_preferences([True, False, True, False, True])
    found = []
    for seeds in ((0, 1), (1, 0)):
        policy, reference = map(float64_model, seeds)
        mean = (sequence_logps(policy, batch.unrelated) - sequence_logps(reference, batch.unrelated)).mean().item()
        for budget in (1, 20, 10_000):
            baseline_B = (
                make_method("kto", policy, reference=reference, micro_batch_tokens=budget).prepare(batch).baseline_B
            )
            assert not baseline_B.requires_grad
            assert baseline_B.tolist() == pytest.approx([max(0.0, mean)] * 5)
        found.append(baseline_B[0].item())
    # with policy and reference swapped one of the means is negative
    assert min(found) == 0 < max(found)
    assert not make_method("kto", policy, reference=reference, loss="apo_zero_unpaired").prepare(batch).baseline_B.any()


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_initial_kto_loss_is_half_the_label_weight(loss):
    method = make_method("kto", float64_model(), loss=loss, desirable_weight=2.0, undesirable_weight=3.0)
    found = method.loss_sum(method.prepare(unpaired_preferences([True, False, False])))
    # ½ · 2 + ½ · 3 + ½ · 3
    assert found.total.item() == pytest.approx(4)
    metrics = combine(found.metrics)
    assert metrics["kl/baseline"] == pytest.approx(0, abs=1e-12)
    assert metrics["log_ratio_max"] == pytest.approx(0, abs=1e-12)


def test_kto_loss_of_an_updated_policy_is_equation_8():
    policy, reference, batch = (
        float64_model(1),
        float64_model(0),
        unpaired_preferences([True, False, True, False, False]),
    )
    settings: dict[str, Any] = {"beta": 0.3, "desirable_weight": 2.0, "undesirable_weight": 0.5}
    method = make_method("kto", policy, reference=reference, **settings)
    ratio = sequence_logps(policy, batch.rows) - sequence_logps(reference, batch.rows).detach()
    unrelated = sequence_logps(policy, batch.unrelated) - sequence_logps(reference, batch.unrelated)
    baseline = unrelated.mean().clamp(min=0).detach()
    value = torch.where(batch.label_B, ratio - baseline, baseline - ratio)
    weight = torch.where(batch.label_B, 2.0, 0.5)
    # λ − λ σ(±β (l − z))
    expected = (weight - weight * torch.sigmoid(0.3 * value)).sum()
    found = method.loss_sum(method.prepare(batch))
    assert found.total.item() == pytest.approx(expected.item())
    assert torch.allclose(flat_gradient(policy, found.total), flat_gradient(policy, expected))
    metrics = combine(found.metrics)
    assert metrics["reward/desirable"] == pytest.approx(0.3 * ratio[batch.label_B].mean().item())
    assert metrics["log_ratio/undesirable"] == pytest.approx(ratio[~batch.label_B].mean().item())
    assert metrics["accuracy"] == pytest.approx((value > 0).double().mean().item())
    margin = 0.3 * (ratio[batch.label_B].mean() - ratio[~batch.label_B].mean()).item()
    assert method.derived(metrics)["margin"] == pytest.approx(margin)


@pytest.mark.parametrize("labels", [[True] * 3, [False] * 3, [True] * 2, [True, False] * 3 + [True]])
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (1, 0)])
def test_batches_of_one_label_and_of_odd_sizes_are_finite(labels, seeds):
    policy = float64_model(seeds[0])
    method, batch = make_method("kto", policy, reference=float64_model(seeds[1])), unpaired_preferences(labels)
    prepared = method.prepare(batch)
    found = method.loss_sum(prepared)
    gradient = flat_gradient(policy, found.total)
    assert torch.isfinite(found.total)
    assert torch.isfinite(gradient).all()
    assert float(gradient.abs().max()) > 0
    metrics = combine(found.metrics)
    assert all(abs(value) < 1e9 for value in (metrics | method.derived(metrics)).values())
    parts = torch.stack([method.loss_sum(prepared.select([index])).total for index in range(len(labels))]).sum()
    assert torch.allclose(flat_gradient(policy, parts), gradient, atol=1e-9)


def test_batch_size_1_is_refused():
    with pytest.raises(ConfigError, match=r"^method\.batch_size=1: .*at least 2.*$"):
        make_method("kto", float64_model(), batch_size=1)


def test_kto_runs_with_an_odd_batch_and_no_undesirable_label(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "good.jsonl"
    path.write_text(
        "".join(f'{{"prompt": "Tom has {n}", "completion": " balls {n}.", "label": true}}\n' for n in range(30))
    )
    quick = ("method.updates=2", "evaluation.completions=0", "data.eval_rows=5", "trainer.checkpoint_every=9")
    found = records(small_run(tmp_path / "runs", "method=kto", f"data.path={path}", "method.batch_size=5", *quick))
    # with the initial policy the loss of a completion is ½, in training and evaluation
    assert [found[0]["eval/loss"], found[1]["loss"]] == pytest.approx([0.5, 0.5])
    assert found[1]["grad_norm"] > 0
    # metrics of an absent label are not logged
    assert "reward/desirable" in found[1]
    assert not {"reward/undesirable", "margin", "eval/margin"} & (found[0].keys() | found[1].keys())
