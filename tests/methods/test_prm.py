"""Process reward models: step logits, accuracies and labels after the first error; worked numbers."""

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
    """Random rows whose steps end before these positions; a row ends at its last position."""
    draw = torch.Generator().manual_seed(0)
    ids = tuple(torch.randint(1, 61, (positions[-1] + 1,), generator=draw) for positions in ends)
    masks = tuple(
        torch.zeros(len(row), dtype=torch.bool).index_fill(0, torch.tensor(positions), True)
        for row, positions in zip(ids, ends, strict=True)
    )
    return StepRows(Rows(ids, masks, tuple(range(len(ids)))), tuple(map(torch.tensor, labels)))


BATCH = chains((3, 5, 9), (4,), (2, 6), labels=((True, False, False), (True,), (False, True)))


def test_first_error_and_mask_up_to_it():
    labels = torch.tensor([[True, False, True], [True, True, False], [False, False, False]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    # the second row has no error: its index is that after the last step
    assert first_error(~labels & mask).tolist() == [1, 3, 0]
    mask_up_to_error = up_to_first_error(labels, mask)
    assert mask_up_to_error.tolist() == [[True, True, False], [True, True, False], [True, False, False]]


def test_accuracies_of_worked_predictions():
    yes, no = True, False
    labels = torch.tensor([[yes, no, no], [yes, yes, no], [no, no, no], [yes, yes, yes]])
    mask = torch.tensor([[yes, yes, yes], [yes, yes, no], [yes, yes, no], [yes, yes, yes]])
    predicted = torch.tensor([[yes, no, yes], [yes, yes, yes], [yes, no, no], [yes, no, yes]])
    found = {name: mean.value() for name, mean in accuracies(predicted, labels, mask).items()}
    assert found == pytest.approx(
        {
            # 2 of 3, 2 of 2, 1 of 2, 2 of 3
            "step_accuracy": 7 / 10,
            # right steps: 1, 2, 0 and 3 per row, of which 1, 2, 0 and 2 are predicted; of 2 and 2 wrong steps 1 and 1
            "step_accuracy/right": 5 / 6,
            "step_accuracy/wrong": 2 / 4,
            # rows 1 and 3 have an error: predicted at its step in row 1, one step late in row 3
            "first_error_accuracy": 1 / 2,
            # error or no error: correct for rows 1, 2 and 3, wrong for row 4
            "solution_accuracy": 3 / 4,
            "positive_step_fraction": 6 / 10,
        }
    )


def test_step_logit_is_read_at_the_last_token_of_the_step():
    model = scorer()
    found = step_logits(model, BATCH.rows)
    for ids, mask, logits in zip(BATCH.rows.ids, BATCH.rows.supervised, found, strict=True):
        for step, position in enumerate(mask.nonzero().flatten().tolist()):
            # The logit of a plain sequence classifier for the row cut after the step
            alone = model(ids[None, :position]).logits.squeeze()
            torch.testing.assert_close(logits[step], alone, atol=1e-9, rtol=0)
        assert logits[int(mask.sum()) :].count_nonzero() == 0


@pytest.mark.parametrize(("after", "counted"), [("use", 6), ("ignore", 4)])
def test_labels_after_the_first_error_are_used_or_ignored(after, counted):
    method = make_method("prm", scorer(), after_first_error=after)
    # 3 + 1 + 2 steps; up to the first error 2 + 1 + 1
    assert method.denominator(BATCH) == counted
    flipped = StepRows(BATCH.rows, (torch.tensor([True, False, True]), *BATCH.labels[1:]))
    same = torch.equal(
        flat_gradient(method.policy, method.loss_sum(BATCH).total),
        flat_gradient(method.policy, method.loss_sum(flipped).total),
    )
    assert same == (after == "ignore")
    # Metrics count all labels in both settings.
    assert float(method.loss_sum(BATCH).metrics["positive_step_fraction"].count) == 6


def test_majority_accuracy_is_the_share_of_the_more_frequent_label():
    method = make_method("prm", scorer())
    assert method.derived({"positive_step_fraction": 0.3}) == {"majority_accuracy": pytest.approx(0.7)}
    assert method.derived({"positive_step_fraction": 0.8}) == {"majority_accuracy": pytest.approx(0.8)}
