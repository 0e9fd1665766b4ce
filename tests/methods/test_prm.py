"""A process reward model's loss, its accuracies, and what it reads: worked numbers and equalities."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from postrain.data.kinds.steps import StepRows
from postrain.methods.prm import accuracies, first_error, up_to_first_error
from postrain.models.scoring import step_logits
from postrain.types import Rows
from tests.methods.builders import flat_gradient, make_method
from tests.tiny import SHAPES


def scorer() -> torch.nn.Module:
    """A tiny random model with a scalar head, in float64."""
    torch.manual_seed(0)
    config = SHAPES["llama"]()
    config.num_labels = 1
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa").eval().double()


def chains(*ends: tuple[int, ...], labels: tuple[tuple[bool, ...], ...]) -> StepRows:
    """Random rows with steps that end right before these places; each row ends at its last one."""
    draw = torch.Generator().manual_seed(0)
    ids = tuple(torch.randint(1, 61, (places[-1] + 1,), generator=draw) for places in ends)
    masks = tuple(
        torch.zeros(len(row), dtype=torch.bool).index_fill(0, torch.tensor(places), True)
        for row, places in zip(ids, ends, strict=True)
    )
    return StepRows(Rows(ids, masks, tuple(range(len(ids)))), tuple(map(torch.tensor, labels)))


BATCH = chains((3, 5, 9), (4,), (2, 6), labels=((True, False, False), (True,), (False, True)))


def test_the_first_error_and_what_comes_up_to_it():
    labels = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    # the second row has two steps, both right: none is wrong, which is one behind the last
    assert first_error(~labels & mask).tolist() == [1, 3, 0]
    kept = up_to_first_error(labels, mask)
    assert kept.tolist() == [[True, True, False], [True, True, False], [True, False, False]]


def test_accuracies_worked_out():
    yes, no = True, False
    labels = torch.tensor([[yes, no, no], [yes, yes, no], [no, no, no], [yes, yes, yes]])
    mask = torch.tensor([[yes, yes, yes], [yes, yes, no], [yes, yes, no], [yes, yes, yes]])
    said = torch.tensor([[yes, no, yes], [yes, yes, yes], [yes, no, no], [yes, no, yes]])
    found = {name: mean.value() for name, mean in accuracies(said, labels, mask).items()}
    assert found == pytest.approx(
        {
            # 2 of 3, 2 of 2, 1 of 2, 2 of 3
            "step_accuracy": 7 / 10,
            # right steps: 1, 2, 0 and 3 of them, of which 1, 2 and 2 are called so; wrong ones: 2 and 2, 1 and 1 found
            "step_accuracy/right": 5 / 6,
            "step_accuracy/wrong": 2 / 4,
            # rows 1 and 3 have an error: found at its place in the first, one step late in the third
            "first_error_accuracy": 1 / 2,
            # flawed or not: told rightly of rows 1, 2 and 3, not of the last
            "solution_accuracy": 3 / 4,
            "positive_step_fraction": 6 / 10,
        }
    )


def test_a_step_is_read_at_its_last_token_whatever_follows():
    model = scorer()
    found = step_logits(model, BATCH.rows)
    for ids, mask, logits in zip(BATCH.rows.ids, BATCH.rows.supervised, found, strict=True):
        for step, place in enumerate(mask.nonzero().flatten().tolist()):
            # A row that ends with the step, read at its last token as a plain sequence classifier does
            alone = model(ids[None, :place]).logits.squeeze()
            torch.testing.assert_close(logits[step], alone, atol=1e-9, rtol=0)
        assert logits[int(mask.sum()) :].count_nonzero() == 0


@pytest.mark.parametrize(("after", "counted"), [("use", 6), ("ignore", 4)])
def test_labels_behind_the_first_error_are_learned_or_not(after, counted):
    method = make_method("prm", scorer(), after_first_error=after)
    # 3 + 1 + 2 steps; up to the first error 2 + 1 + 1
    assert method.denominator(BATCH) == counted
    flipped = StepRows(BATCH.rows, (torch.tensor([True, False, True]), *BATCH.labels[1:]))
    same = torch.equal(
        flat_gradient(method.policy, method.loss_sum(BATCH).total),
        flat_gradient(method.policy, method.loss_sum(flipped).total),
    )
    assert same == (after == "ignore")
    # Measured are all labels, so that the two settings compare.
    assert float(method.loss_sum(BATCH).metrics["positive_step_fraction"].count) == 6


def test_the_baseline_is_the_more_frequent_label():
    method = make_method("prm", scorer())
    assert method.derived({"positive_step_fraction": 0.3}) == {"majority_accuracy": pytest.approx(0.7)}
    assert method.derived({"positive_step_fraction": 0.8}) == {"majority_accuracy": pytest.approx(0.8)}
