"""Test-time scaling on scripted engines against worked numbers, and determinism on the bundled model."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from postrain.data.chat import Template
from postrain.data.conversation import Message, user
from postrain.errors import ConfigError
from postrain.evaluation.scaling.cot import few_shot_turns, with_suffix, worked_sum
from postrain.evaluation.scaling.tree import partial_sum, yes_probabilities
from postrain.models.loading import load_causal
from postrain.rewards.base import WeightedSum, is_model_based
from postrain.rewards.judge import Judge, SelfJudge
from postrain.rewards.reward_model import OutcomeRewardModel, ProcessRewardModel
from postrain.world.sums import chain, terms_of
from tests.engines import engine
from tests.evaluation.scaling.scripted import ANY, PROMPTS, Marks, eval_model, measure, nano, right_and_wrong, sums

END = "<|endoftext|>"
SHALLOW = {
    "beam": {"widths": (2,), "expansions": 2, "depth": 2},
    "tree": {"breadths": (2,), "proposals": 2, "depth": 2},
}
METHODS = ("best_of_n", "self_consistency", "cot", "beam", "tree")


def scores(points) -> list[float]:
    return [point.score.value for point in points]


# Best of n ------------------------------------------------------------------------------------------------------------


def right_answers() -> list[str]:
    return [f"is {columns['answer']}." for columns in sums().eval_prompts(PROMPTS).columns]


def test_best_of_n_by_a_misaligned_reward():
    fond = Marks(dict.fromkeys(right_answers(), 0.0) | {"is": 1.0})
    asked = eval_model(right_and_wrong(), reward=None)
    # Two of four samples are right. One of two is drawn: all worse ones need C(2,2)/C(4,2) = 1/6; of four, none.
    found = measure("best_of_n", samples=4, scorer=fond, prompts=1)(asked)
    worst = found.curves["best of n (reward)"]
    assert scores(worst) == pytest.approx([1 / 2, 1 / 6, 0])
    assert [point.kl for point in worst] == pytest.approx([0, math.log(2) - 1 / 2, math.log(4) - 3 / 4])
    assert scores(found.curves["best of n (oracle)"]) == pytest.approx([1 / 2, 5 / 6, 1])
    assert found.metrics["gain"].value == pytest.approx(-1 / 2)
    assert scores(found.curves["greedy"]) == [1]
    tokens = [point.tokens for point in worst]
    assert tokens == pytest.approx([tokens[0], 2 * tokens[0], 4 * tokens[0]])
    assert found.example == sums().eval_prompts(1).texts[0]
    assert found.records[0]["right"] == pytest.approx({"1": 1 / 2, "2": 1 / 6, "4": 0})


def test_best_of_n_breaks_ties_uniformly_and_does_not_select_by_the_grader():
    verifier = Marks(dict.fromkeys(right_answers(), 1.0))
    found = measure("best_of_n", samples=4)(eval_model(right_and_wrong(), reward=verifier))
    assert scores(found.curves["best of n (logprob)"]) == pytest.approx([1 / 2] * 3)
    assert "best of n (reward)" not in found.curves
    assert any(note.startswith("by=reward: there is no reward besides the grader") for note in found.notes)
    by_answer = measure("best_of_n", samples=4, right="answer")
    assert "best of n (reward)" in by_answer(eval_model(right_and_wrong(), reward=Marks({"is": 1.0}))).curves


def test_temperature_zero_is_an_error():
    asked = eval_model(right_and_wrong())
    with pytest.raises(ConfigError, match=r"^rollout\.temperature=0: .*more than 0$"):
        measure("best_of_n")(replace(asked, engine=replace(asked.engine, temperature=0.0)))  # type: ignore[type-var]


def test_ungraded_completions_count_as_wrong_with_a_note():
    half = eval_model(right_and_wrong(), reward=Marks({right_answers()[0]: 1.0}))
    found = measure("best_of_n", samples=2, prompts=1)(half)
    # One of two samples and no greedy completion.
    assert "1 of 3 completions could not be graded and count as wrong" in found.notes
    assert found.metrics["one_sample"].value == 1 / 2


# Grader -------------------------------------------------------------------------------------------------------------


def test_missing_grader_gives_a_note():
    found = measure("self_consistency", right="reward")(eval_model(right_and_wrong()))
    assert found.metrics == {}
    assert found.notes[0].startswith("right=reward: there is no grader; choose a verifiable reward")


def test_threshold_turns_a_reward_into_correctness():
    liked = Marks({"is": 0.5})
    for threshold, accuracy in ((None, 0.5), (0.5, 1.0), (0.6, 0.0)):
        found = measure("self_consistency", threshold=threshold, samples=2)(eval_model(right_and_wrong(), reward=liked))
        assert found.metrics["accuracy"].value == accuracy


def test_threshold_tolerates_float32_rounding():
    # 0.7 as float32 is 0.699999988.
    found = measure("self_consistency", threshold=0.7, samples=1)
    assert found(eval_model(right_and_wrong(), reward=Marks({"is": 0.7}))).metrics["accuracy"].value == 1


@pytest.mark.parametrize("model_based", [True, False])
def test_learned_rewards_are_not_automatic_graders(model_based):
    fond = type("Fond", (Marks,), {"model_based": model_based})({"is": 1.0})
    for reward in (fond, WeightedSum(parts={"fond": fond}, weights={"fond": 1.0})):
        found = measure("self_consistency", samples=2)(eval_model(right_and_wrong(), reward=reward))
        # Of two answers one is the row's.
        assert found.metrics["one_sample"].value == (0.5 if model_based else 1)
    assert all(map(is_model_based, (Judge, OutcomeRewardModel, ProcessRewardModel, SelfJudge)))


def test_gold_scores_grade_without_reward_and_answers():
    asked = eval_model(lambda _: [" In the end, they all went home."], "data=world_stories")
    found = measure("best_of_n", samples=2)(asked)
    assert found.notes[0].startswith("accuracy: mean gold score")
    assert 0 < found.metrics["accuracy"].value < 1


# Self-consistency -----------------------------------------------------------------------------------------------------


def test_self_consistency_accuracy_and_confidence_match_worked_example():
    both = right_and_wrong()
    # Right, wrong, right, right: of one 3/4; of two 1 and 1, since of a tie the first is taken; of four 1 with ¾.
    asked = eval_model(lambda prompt: [both(prompt)[place] for place in (0, 1, 0, 0)])
    found = measure("self_consistency", samples=4)(asked)
    assert scores(found.curves["self-consistency"]) == [3 / 4, 1, 1]
    assert found.metrics["confidence"].value == 3 / 4
    # Prompts of confidence ¾, all of them right.
    assert found.metrics["calibration_error"].value == pytest.approx(1 / 4)
    assert found.metrics["gain"].value == pytest.approx(1 / 4)
    assert len(set(found.records[0]["answers"])) == 2


def test_completions_without_an_answer_have_no_vote():
    found = measure("self_consistency", samples=2)(eval_model(lambda _: [" I do not know."]))
    assert (found.metrics["confidence"].value, found.metrics["answered"].value) == (0, 0)
    # Never sure and never right is not calibrated: there is nothing to be sure of.
    assert "calibration_error" not in found.metrics
    assert found.notes[-1] == "6 of 6 completions give no number and have no vote"


# Chain of thought -----------------------------------------------------------------------------------------------------


def test_few_shot_examples_are_turns_and_prefixes_of_each_other():
    pool = [worked_sum("3 + 4 = ?"), worked_sum("9 - 2 + 1 = ?"), worked_sum("1 + 1 = ?")]
    assert pool[1] == (*user("9 - 2 + 1 = ?"), Message("assistant", " 9 - 2 = 7. 7 + 1 = 8. The answer is 8."))
    assert few_shot_turns(pool, 1, seed=3) == few_shot_turns(pool, 3, seed=3)[:2]
    assert {few_shot_turns(pool, 1, seed=seed) for seed in range(9)} == set(pool)
    assert with_suffix(user("Why?"), "Think.") == user("Why? Think.")


def test_each_prompt_variant_has_its_model_input():
    both, heard = right_and_wrong(), []

    def says(prompt: str) -> list[str]:
        """Right only after worked examples."""
        heard.append(prompt)
        question = prompt.split(END)[-1].removesuffix(" The answer is").removesuffix(" Think.")
        return [both(question)[END not in prompt]]

    found = measure("cot", zero_shot="Think.", shots=(1, 2))(eval_model(says))
    asked = sums().eval_prompts(PROMPTS).texts
    assert heard[:PROMPTS] == list(asked)
    assert heard[PROMPTS : 2 * PROMPTS] == [f"{text} The answer is" for text in asked]
    assert heard[2 * PROMPTS : 3 * PROMPTS] == [f"{text} Think." for text in asked]
    one, two = heard[3 * PROMPTS], heard[4 * PROMPTS]
    assert one.endswith(f"The answer is {answer_of(one)}.{END}{asked[0]}")
    assert two.startswith(one.removesuffix(asked[0]))
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
    both = right_and_wrong()
    first = sums().eval_prompts(1).texts[0]
    found = measure("cot", shots=())(eval_model(lambda prompt: [both(prompt)[0] if prompt == first else " Well."]))
    metrics, (sure, *silent) = found.metrics, found.records
    assert (metrics["as_it_stands/answered"].value, metrics["as_it_stands/confidence"].n) == (1 / PROMPTS, 1)
    # One answer, which is right: its error is what it lacks of certainty.
    error = 1 - sure["as_it_stands/confidence"]
    assert metrics["as_it_stands/calibration_error"].value == pytest.approx(error)
    assert [one["as_it_stands/confidence"] for one in silent] == [None, None]
    assert "zero_shot/calibration_error" not in metrics


def answer_of(prompt: str) -> int:
    """Of the sum a text begins with."""
    return sum(terms_of(prompt.partition(" = ?")[0]))


def test_few_shot_examples_use_the_chat_template():
    heard = []
    asked = eval_model(lambda prompt: heard.append(prompt) or ["7"], "data=world_sums", "data.template=qa")
    measure("cot", shots=(1,), prompts=1)(asked)
    assert heard[-1].count("Question: ") == heard[-1].count("Answer:") == 2
    assert heard[-1].endswith("\nAnswer:")


def test_examples_come_from_demonstrations_or_a_named_column():
    asked = eval_model(lambda prompt: ["7"], "data=world_demonstrations")
    assert "few_shot_1/accuracy" in measure("cot", shots=(1,))(asked).metrics
    stories = eval_model(lambda prompt: ["7"], "data=world_stories")
    found = measure("cot", shots=(1,))(stories)
    assert any(note.startswith("few-shot is left out") for note in found.notes)
    assert "few_shot_1/accuracy" in measure("cot", shots=(1,), worked="category")(stories).metrics
    with pytest.raises(ConfigError, match=r"^worked=steps: the training rows have no such column; they have .*gold"):
        measure("cot", shots=(1,), worked="steps")(stories)


def test_examples_that_do_not_fit_the_context_are_left_out():
    asked = replace(eval_model(lambda prompt: [" The answer is 7."]), context=160)
    found = measure("cot", shots=(1, 12))(asked)
    assert "few_shot_1/accuracy" in found.metrics
    assert "left out, since longer than the model's context: few-shot, 12 examples" in found.notes


# Search ---------------------------------------------------------------------------------------------------------------


def stepwise(prompt: str) -> list[str]:
    """The next step of a sum, wrong by one at first and then right."""
    question, _, steps = prompt.partition(" = ?")
    right = chain(terms_of(question))
    done = steps.count(".")
    if done >= len(right):
        return [""]
    value = int(right[done].split(" ")[-1].rstrip("."))
    return [f" {right[done]}".replace(f" {value}.", f" {value + 1}."), f" {right[done]}"]


def test_tree_of_thoughts_with_exact_values_beats_greedy_decoding():
    found = measure("tree", breadths=(1, 2), proposals=2)(eval_model(stepwise))
    assert scores(found.curves["tree of thoughts"]) == [1, 1]
    assert found.metrics["greedy"].value < 1
    assert any(note.startswith("value=gold") for note in found.notes)
    question = sums().eval_prompts(1).texts[0]
    right = [f" {step}" for step in chain(terms_of(question))]
    assert found.records[0]["completions"]["breadth 1"] == "".join(right)
    # Breadth 1 keeps one state: both proposals after each right step are paid for, and the end token twice.
    asked = eval_model(stepwise)
    proposed = [text for done in range(len(right)) for text in stepwise(question + "".join(right[:done]))]
    paid = sum(len(asked.template.encode_continuation(text)) for text in proposed) + 2
    assert measure("tree", breadths=(1,), proposals=2, prompts=1)(asked).metrics["tokens"].value == paid


def test_beam_search_keeps_the_best_scored_states():
    liked = {" " + step: 0.9 for text in sums().eval_prompts(PROMPTS).texts for step in chain(terms_of(text))[-1:]}
    always = Marks(liked | {"The answer": 0.1, "=": 0.5})
    found = measure("beam", widths=(2,), expansions=2, scorer=always)(eval_model(stepwise))
    (point,) = found.curves["beam search"]
    assert point.label == "2 × 2"
    assert point.score.value == 1
    last = found.curves["best of n, same value"][-1]
    one = found.curves["best of n, same value"][0]
    assert last.label == f"best of {round(point.tokens / one.tokens)}"
    # A reward that scores steps is taken where no scorer is named.
    by_reward = measure("beam", widths=(2,), expansions=2, right="answer")(eval_model(stepwise, reward=always))
    assert by_reward.notes[0] == "accuracy: the extracted number equals the column answer"
    assert by_reward.metrics["accuracy"] == found.metrics["accuracy"]


def test_missing_process_reward_model_gives_a_note():
    for found in (measure("beam")(eval_model(stepwise)), measure("tree", value="process")(eval_model(stepwise))):
        assert found.metrics == {}
        assert "python train.py method=prm" in found.notes[0]


def test_gold_values_need_sums():
    found = measure("tree", right="gold")(eval_model(stepwise, "data=world_stories"))
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


# On the bundled model -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    """The bundled model nano."""
    _, resolved = nano("data=world_sums")
    model = load_causal(resolved, dtype=torch.float32).eval()
    return eval_model(ANY, model=model, engine=engine(max_new_tokens=16))


def test_yes_probability_is_a_softmax_over_yes_and_no(real):
    template: Template = real.template
    asked = ["3 + 4 = 7.\nRight?", "word " * 600]
    found = yes_probabilities(real, asked)
    assert found[1] is None
    ids = template.encode_prompt(user(asked[0]))
    logps = []
    for word in (" yes", " no"):
        more = template.encode_continuation(word)
        with torch.no_grad():
            all_L = real.model(torch.cat([ids, more])[None]).logits[0].log_softmax(-1)
        logps.append(sum(all_L[len(ids) - 1 + at, token] for at, token in enumerate(more)))
    assert found[0] == pytest.approx(float(torch.sigmoid(logps[0] - logps[1])), abs=1e-5)


@pytest.mark.parametrize("way", METHODS)
def test_task_is_deterministic_and_records_average_to_its_metrics(real, way):
    scorer = {"scorer": Marks({"= 7": 0.2, "1": 0.9, "": 0.5})} if way in ("best_of_n", "beam") else {}
    fewer = {"shots": (1,)} if way == "cot" else SHALLOW.get(way, {"samples": 2})
    one, again = measure(way, **fewer, **scorer)(real), measure(way, **fewer, **scorer)(real)
    assert one.metrics == again.metrics
    assert one.records == again.records
    assert [record["row"] for record in one.records] == list(sums().eval_prompts(PROMPTS).row_ids)
    for name in set(one.metrics) & set(one.records[0]):
        known = [record[name] for record in one.records if record[name] is not None]
        assert sum(known) / len(known) == pytest.approx(one.metrics[name].value)
    json.dumps(one.records)
