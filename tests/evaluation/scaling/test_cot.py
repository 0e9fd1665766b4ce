"""Chain of thought on scripted engines: prompts, accuracy and calibration."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from postrain.data.conversation import Message, user
from postrain.errors import ConfigError
from postrain.evaluation.scaling.cot import few_shot_turns, with_suffix, worked_sum
from postrain.world.sums import terms_of
from tests.evaluation.scaling.scripted import (
    PROMPTS,
    correct_and_wrong,
    eval_model,
    make_task,
    scores,
    sums,
)

END = "<|endoftext|>"


def test_few_shot_examples_are_turns_and_prefixes_of_each_other():
    pool = [worked_sum("3 + 4 = ?"), worked_sum("9 - 2 + 1 = ?"), worked_sum("1 + 1 = ?")]
    assert pool[1] == (*user("9 - 2 + 1 = ?"), Message("assistant", " 9 - 2 = 7. 7 + 1 = 8. The answer is 8."))
    assert few_shot_turns(pool, 1, seed=3) == few_shot_turns(pool, 3, seed=3)[:2]
    assert {few_shot_turns(pool, 1, seed=seed) for seed in range(9)} == set(pool)
    assert with_suffix(user("Why?"), "Think.") == user("Why? Think.")


def test_each_prompt_variant_has_its_model_input():
    both, received = correct_and_wrong(), []

    def continuations(prompt: str) -> list[str]:
        """Correct only after worked examples."""
        received.append(prompt)
        question = prompt.split(END)[-1].removesuffix(" The answer is").removesuffix(" Think.")
        return [both(question)[END not in prompt]]

    found = make_task("cot", zero_shot="Think.", shots=(1, 2))(eval_model(continuations))
    questions = sums().eval_prompts(PROMPTS).texts
    assert received[:PROMPTS] == list(questions)
    assert received[PROMPTS : 2 * PROMPTS] == [f"{text} The answer is" for text in questions]
    assert received[2 * PROMPTS : 3 * PROMPTS] == [f"{text} Think." for text in questions]
    one, two = received[3 * PROMPTS], received[4 * PROMPTS]
    assert one.endswith(f"The answer is {answer_of(one)}.{END}{questions[0]}")
    assert two.startswith(one.removesuffix(questions[0]))
    assert two.count("The answer is") == 2
    assert found.example == two
    assert {name: scores(points) for name, points in found.curves.items()} == {
        "as it stands": [0],
        "direct": [0],
        "zero-shot": [0],
        "few-shot": [1, 1],
    }
    assert found.metrics["few_shot_1/gain"].value == 1
    for record in found.records:
        # Each token is written with probability e^-½, each digit is a token.
        expected = math.exp(-len(record["few_shot_2/answer"]) / 2)
        assert record["few_shot_2/confidence"] == pytest.approx(expected)


def test_calibration_excludes_completions_without_an_answer():
    both = correct_and_wrong()
    first = sums().eval_prompts(1).texts[0]
    found = make_task("cot", shots=())(eval_model(lambda prompt: [both(prompt)[0] if prompt == first else " Well."]))
    metrics, (answered, *unanswered) = found.metrics, found.records
    assert (metrics["as_it_stands/answered"].value, metrics["as_it_stands/confidence"].n) == (1 / PROMPTS, 1)
    # One answer, which is correct: its error is 1 − confidence.
    error = 1 - answered["as_it_stands/confidence"]
    assert metrics["as_it_stands/calibration_error"].value == pytest.approx(error)
    assert [one["as_it_stands/confidence"] for one in unanswered] == [None, None]
    assert "zero_shot/calibration_error" not in metrics


def answer_of(prompt: str) -> int:
    """The answer of the sum at the beginning of a text."""
    return sum(terms_of(prompt.partition(" = ?")[0]))


def test_few_shot_examples_use_the_chat_template():
    received = []
    scripted = eval_model(lambda prompt: received.append(prompt) or ["7"], "data=world_sums", "data.template=qa")
    make_task("cot", shots=(1,), prompts=1)(scripted)
    assert received[-1].count("Question: ") == received[-1].count("Answer:") == 2
    assert received[-1].endswith("\nAnswer:")


def test_examples_come_from_demonstrations_or_a_named_column():
    scripted = eval_model(lambda prompt: ["7"], "data=world_demonstrations")
    assert "few_shot_1/accuracy" in make_task("cot", shots=(1,))(scripted).metrics
    stories = eval_model(lambda prompt: ["7"], "data=world_stories")
    found = make_task("cot", shots=(1,))(stories)
    assert any(note.startswith("few-shot is left out") for note in found.notes)
    assert "few_shot_1/accuracy" in make_task("cot", shots=(1,), worked="category")(stories).metrics
    with pytest.raises(ConfigError, match=r"^worked=steps: the training rows have no such column; they have .*gold"):
        make_task("cot", shots=(1,), worked="steps")(stories)


def test_examples_that_do_not_fit_the_context_are_left_out():
    scripted = replace(eval_model(lambda prompt: [" The answer is 7."]), context=160)
    found = make_task("cot", shots=(1, 12))(scripted)
    assert "few_shot_1/accuracy" in found.metrics
    assert "left out, since longer than the model's context: few-shot, 12 examples" in found.notes
