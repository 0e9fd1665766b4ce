"""The comparison of two models' logits, and of two reward models' scores."""

import torch

from postrain.models.logit_check import CheckRows, compare_logits


def test_logits_are_compared_by_value_and_by_the_most_likely_token():
    first = [torch.tensor([[1.0, 2.0], [4.0, -8.0]])]
    second = [torch.tensor([[1.5, 2.0], [4.0, -7.0]])]
    found = compare_logits(first, second, CheckRows((torch.tensor([3, 4]),), "built-in texts"))
    assert (found.max_difference, found.largest, found.same_token, found.tokens) == (1.0, 8.0, 1.0, 2)


def test_scores_have_no_most_likely_token():
    rows = CheckRows((torch.tensor([3, 4]), torch.tensor([5])), "samples.jsonl")
    found = compare_logits([torch.tensor([[0.5]]), torch.tensor([[-2.0]])], [torch.tensor([[0.25]])] * 2, rows)
    assert found.same_token is None
    assert found.describe() == "max |Δscore| 2.2 (largest score 2), 2 rows of samples.jsonl"
