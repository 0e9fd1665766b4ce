"""Scoring equals plain transformers for every split into micro-batches."""

import pytest
import torch

from postrain.models import scoring
from postrain.models.micro_batches import in_micro_batches, micro_batches
from postrain.models.reference import Reference
from postrain.models.scoring import score, score_with_reference, values
from postrain.types import Rows
from tests.tiny import SHAPES, VOCABULARY, tiny_model


def ragged(count: int, seed: int = 0) -> Rows:
    """Rows of 2 to 20 tokens with random supervised tokens: never the first, always the last."""
    generator = torch.Generator().manual_seed(seed)
    ids, masks = [], []
    for length in torch.randint(2, 21, (count,), generator=generator).tolist():
        ids.append(torch.randint(1, VOCABULARY, (length,), generator=generator))
        mask = torch.rand(length, generator=generator) < 0.6
        mask[0], mask[-1] = False, True
        masks.append(mask)
    return Rows(tuple(ids), tuple(masks), tuple(range(count)))


def plain_logps(model, ids, mask, temperature=1.0):
    """Log-probabilities of one row under the whole model."""
    logps = (model(ids[None]).logits[0, :-1] / temperature).log_softmax(-1)
    return logps.gather(-1, ids[1:, None]).squeeze(-1)[mask[1:]]


@pytest.mark.parametrize("architecture", SHAPES)
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_scores_equal_plain_transformers(architecture, temperature):
    model, rows = tiny_model(architecture), ragged(7)
    found = score(model, rows, temperature=temperature, entropy="differentiable")
    for row, (ids, mask) in enumerate(zip(rows.ids, rows.supervised, strict=True)):
        real = found.mask_BT[row]
        assert int(real.sum()) == int(mask.sum())
        assert torch.allclose(found.logps_BT[row][real], plain_logps(model, ids, mask, temperature), atol=1e-5)
        logps = (model(ids[None]).logits[0, :-1] / temperature).log_softmax(-1)
        entropy = -(logps.exp() * logps).sum(-1)[mask[1:]]
        assert found.entropy_BT is not None
        assert torch.allclose(found.entropy_BT[row][real], entropy, atol=1e-5)
    assert not found.logps_BT[~found.mask_BT].any()


def test_chunks_and_micro_batches_do_not_change_scores_or_gradients(monkeypatch):
    model, rows = tiny_model(), ragged(9)

    def gradient() -> list[torch.Tensor]:
        model.zero_grad()
        score(model, rows).logps_BT.sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    whole, expected = score(model, rows), gradient()
    monkeypatch.setitem(scoring.CHUNK_ELEMENTS, "cpu", 5 * VOCABULARY)
    for one, other in zip(expected, gradient(), strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)
    for budget in (1, 25, 60, 10_000):
        found = in_micro_batches(lambda part: score(model, part), rows, budget)
        assert torch.equal(found.mask_BT, whole.mask_BT)
        assert torch.allclose(found.logps_BT, whole.logps_BT, atol=1e-5)


def test_micro_batches_contain_every_row_once_within_the_budget():
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        count = int(torch.randint(1, 30, (1,), generator=generator))
        costs = torch.randint(1, 40, (count,), generator=generator).tolist()
        groups = micro_batches(costs, 64)
        assert sorted(index for group in groups for index in group) == list(range(len(costs)))
        assert all(len(group) == 1 or sum(costs[i] for i in group) <= 64 for group in groups)
    assert micro_batches([], 64) == []


def test_kl_is_zero_to_itself_and_exact_to_another_model():
    model, other, rows = tiny_model(seed=0), tiny_model(seed=1), ragged(5)
    same = score_with_reference(model, Reference.for_policy(model), rows)
    assert float(same.kl_BT.detach().abs().max()) < 1e-6
    assert torch.equal(same.logps_BT, same.ref_logps_BT)
    found = score_with_reference(model, Reference.for_policy(model, other), rows)
    for row, (ids, mask) in enumerate(zip(rows.ids, rows.supervised, strict=True)):
        p, q = (m(ids[None]).logits[0, :-1].log_softmax(-1)[mask[1:]] for m in (model, other))
        real = found.mask_BT[row]
        assert torch.allclose(found.kl_BT[row][real], (p.exp() * (p - q)).sum(-1), atol=1e-4)
        assert torch.allclose(found.ref_logps_BT[row][real], plain_logps(other, ids, mask), atol=1e-5)
    assert float(found.kl_BT.min()) >= -1e-6


def test_values_are_those_of_the_state_before_each_token():
    model, rows = tiny_model(), ragged(4)
    head = torch.nn.Linear(16, 1)
    found = values(model, rows, head)
    scored = score(model, rows, head=head).values_BT
    assert scored is not None
    assert torch.equal(found, scored)
    for row, (ids, mask) in enumerate(zip(rows.ids, rows.supervised, strict=True)):
        states = model.transformer(ids[None]).last_hidden_state[0, :-1][mask[1:]]
        assert torch.allclose(found[row, : int(mask.sum())], head(states).squeeze(-1), atol=1e-5)
