"""Test-time scaling on the bundled model: determinism, and yes probabilities."""

from __future__ import annotations

import json

import pytest
import torch

from postrain.data.chat import Template
from postrain.data.conversation import user
from postrain.evaluation.scaling.tree import yes_probabilities
from postrain.models.loading import load_causal
from tests.engines import engine
from tests.evaluation.scaling.scripted import (
    ANY,
    PROMPTS,
    TableReward,
    eval_model,
    make_task,
    nano,
    sums,
)

SHALLOW = {
    "beam": {"widths": (2,), "expansions": 2, "depth": 2},
    "tree": {"breadths": (2,), "proposals": 2, "depth": 2},
}
METHODS = ("best_of_n", "self_consistency", "cot", "beam", "tree")


@pytest.fixture(scope="module")
def real():
    """The bundled model nano."""
    _, resolved = nano("data=world_sums")
    model = load_causal(resolved, dtype=torch.float32).eval()
    return eval_model(ANY, model=model, engine=engine(max_new_tokens=16))


def test_yes_probability_is_a_softmax_over_yes_and_no(real):
    template: Template = real.template
    questions = ["3 + 4 = 7.\nRight?", "word " * 600]
    found = yes_probabilities(real, questions)
    assert found[1] is None
    ids = template.encode_prompt(user(questions[0]))
    logps = []
    for word in (" yes", " no"):
        more = template.encode_continuation(word)
        with torch.no_grad():
            all_L = real.model(torch.cat([ids, more])[None]).logits[0].log_softmax(-1)
        logps.append(sum(all_L[len(ids) - 1 + at, token] for at, token in enumerate(more)))
    assert found[0] == pytest.approx(float(torch.sigmoid(logps[0] - logps[1])), abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_task_is_deterministic_and_records_average_to_its_metrics(real, method):
    scorer = {"scorer": TableReward({"= 7": 0.2, "1": 0.9, "": 0.5})} if method in ("best_of_n", "beam") else {}
    fewer = {"shots": (1,)} if method == "cot" else SHALLOW.get(method, {"samples": 2})
    one, again = make_task(method, **fewer, **scorer)(real), make_task(method, **fewer, **scorer)(real)
    assert one.metrics == again.metrics
    assert one.records == again.records
    assert [record["row"] for record in one.records] == list(sums().eval_prompts(PROMPTS).row_ids)
    for name in set(one.metrics) & set(one.records[0]):
        known = [record[name] for record in one.records if record[name] is not None]
        assert sum(known) / len(known) == pytest.approx(one.metrics[name].value)
    json.dumps(one.records)
