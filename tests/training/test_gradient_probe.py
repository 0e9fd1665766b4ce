"""Sketches keep products of gradients, and the estimators of a probe on a small run."""

from __future__ import annotations

import pytest
import torch

from postrain.cli.probe import main
from postrain.training.gradient_probe import OWN, UNBIASED, Probe, group_sizes, mean_of_batch, no_baseline
from postrain.training.sketch import Sketch
from tests.training_runs import SMALL, composed, shallow


def test_sketch_keeps_products_within_its_stated_error():
    source, size = torch.Generator().manual_seed(0), 1009
    a, noise = torch.randn(2, 20_000, generator=source)
    b = a + noise
    sketch = Sketch(20_000, size=size)
    # Two parts, as a gradient has several tensors. Standard deviation |a||b|/√D; four of them.
    found = float(sketch([a[:7000].view(70, 100), a[7000:]]) @ sketch([b]))
    assert abs(found - float(a @ b)) < 4 * float(a.norm() * b.norm()) / size**0.5
    assert found != float(a @ b)


def test_small_gradients_are_kept_up_to_signs():
    a, sketch = torch.arange(6.0), Sketch(6)
    assert torch.equal(sketch([a[:2], a[2:]]).abs(), a)
    with pytest.raises(ValueError, match="expected 6 numbers, got 5"):
        sketch([a[:5]])


def test_baselines_leave_unscorable_completions_without_advantage():
    rewards = torch.tensor([[1.0, float("nan")], [0.0, 2.0]])
    assert no_baseline(rewards).tolist() == [[1, 0], [0, 2]]
    assert mean_of_batch(rewards).tolist() == [[0, 0], [-1, 1]]


def test_group_sizes_keep_the_number_of_completions():
    assert group_sizes(16, 8) == [2, 4, 16]
    assert group_sizes(2, 2) == []
    assert group_sizes(3, 4) == [2]  # 8 does not divide 12


def test_estimators_of_one_probe_share_their_samples():
    words = [*SMALL, *shallow("grpo"), "method.batch_size=2", "method.group_size=4", "evaluation.completions=0"]
    advance = []
    probe = Probe(composed([*words, "rollout.max_new_tokens=4"]), 3, advance=lambda: advance.append(1))
    found = {one.name: one for one in probe.group(4, (OWN, "no baseline", "GRPO"))}
    assert [*found] == [UNBIASED, OWN, "no baseline", "GRPO"]
    assert (len(advance), found[UNBIASED].prompts, found[UNBIASED].group_size) == (3, 2, 4)
    # The default run is GRPO as published; the same samples give the same gradients.
    assert repr(found[OWN].quality) == repr(found["GRPO"].quality)
    assert repr(found["no baseline"].quality) != repr(found[UNBIASED].quality)


def test_too_few_updates_are_one_line(capsys):
    assert main(["method=grpo", "--factor", "2"]) == 2
    assert capsys.readouterr().err.startswith("error: --factor 2: expected at least 3 updates")
