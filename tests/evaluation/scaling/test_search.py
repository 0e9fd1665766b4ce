"""Tree of thoughts and beam search on scripted engines against worked numbers."""

from __future__ import annotations

import pytest

from postrain.evaluation.scaling.tree import partial_sum
from postrain.world.sums import chain, terms_of
from tests.evaluation.scaling.scripted import (
    PROMPTS,
    TableReward,
    eval_model,
    make_task,
    scores,
    sums,
)


def stepwise(prompt: str) -> list[str]:
    """The next step of a sum, first wrong by one, then correct."""
    question, _, steps = prompt.partition(" = ?")
    correct = chain(terms_of(question))
    done = steps.count(".")
    if done >= len(correct):
        return [""]
    value = int(correct[done].split(" ")[-1].rstrip("."))
    return [f" {correct[done]}".replace(f" {value}.", f" {value + 1}."), f" {correct[done]}"]


def test_tree_of_thoughts_with_exact_values_beats_greedy_decoding():
    found = make_task("tree", breadths=(1, 2), proposals=2)(eval_model(stepwise))
    assert scores(found.curves["tree of thoughts"]) == [1, 1]
    assert found.metrics["greedy"].value < 1
    assert any(note.startswith("value=gold") for note in found.notes)
    question = sums().eval_prompts(1).texts[0]
    correct = [f" {step}" for step in chain(terms_of(question))]
    assert found.records[0]["completions"]["breadth 1"] == "".join(correct)
    # Breadth 1 keeps one state: both proposals after each correct step count, and the end token twice.
    scripted = eval_model(stepwise)
    proposed = [text for done in range(len(correct)) for text in stepwise(question + "".join(correct[:done]))]
    tokens = sum(len(scripted.template.encode_continuation(text)) for text in proposed) + 2
    assert make_task("tree", breadths=(1,), proposals=2, prompts=1)(scripted).metrics["tokens"].value == tokens


def test_beam_search_keeps_the_best_scored_states():
    marks = {" " + step: 0.9 for text in sums().eval_prompts(PROMPTS).texts for step in chain(terms_of(text))[-1:]}
    always = TableReward(marks | {"The answer": 0.1, "=": 0.5})
    found = make_task("beam", widths=(2,), expansions=2, scorer=always)(eval_model(stepwise))
    (point,) = found.curves["beam search"]
    assert point.label == "2 × 2"
    assert point.score.value == 1
    last = found.curves["best of n, same value"][-1]
    one = found.curves["best of n, same value"][0]
    assert last.label == f"best of {round(point.tokens / one.tokens)}"
    # Without a scorer, the run's reward scores the steps.
    by_reward = make_task("beam", widths=(2,), expansions=2, grader="answer")(eval_model(stepwise, reward=always))
    assert by_reward.notes[0] == "accuracy: the extracted number equals the column answer"
    assert by_reward.metrics["accuracy"] == found.metrics["accuracy"]


def test_missing_process_reward_model_gives_a_note():
    for found in (make_task("beam")(eval_model(stepwise)), make_task("tree", value="process")(eval_model(stepwise))):
        assert found.metrics == {}
        assert "python train.py method=prm" in found.notes[0]


def test_gold_values_need_sums():
    found = make_task("tree", grader="gold")(eval_model(stepwise, "data=world_stories"))
    assert found.notes == ("value=gold checks the world's sums; use data=world_sums, or value=model or process",)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (" 3 + 4 = 7.", 1),
        (" 3 + 4 = 8.", 0),
        (" 3 + 4 = 7. 7 - 2 = 5. The answer is 5.", 1),
        (" 3 + 4 = 7. The answer is 5.", 1),
        (" 3 + 4 = 7. The answer is 7.", 0),
        (" ", None),
    ],
)
def test_partial_sums_are_checked_step_by_step(text, value):
    assert partial_sum(chain((3, 4, -2)), text) == value
