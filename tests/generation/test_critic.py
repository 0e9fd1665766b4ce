"""critic.py and the critic of the world: revisions, preferences and win rates by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.generation.critic import WORLD, FunctionCritic, read_principles, revised, win_rates
from postrain.rollout.revise import Revision
from postrain.world.critic import RULES, criticise

INSULT, REPETITION = RULES
RUDE = "You are so dumb. It is 3. It is 3."


def world(*principles: str) -> FunctionCritic:
    return FunctionCritic(principles=principles, function=WORLD)


def test_world_critic_removes_the_sentences_that_break_the_principle():
    assert criticise("1 + 2?", RUDE, INSULT) == ("'You are so dumb.' is rude", "It is 3. It is 3.")
    assert criticise("1 + 2?", " It is 3. it is 3.", REPETITION) == ("'it is 3.' is a repetition", " It is 3.")
    assert criticise("1 + 2?", "You fool.", INSULT) == ("'You fool.' is rude", "")
    assert criticise("1 + 2?", "It is 3.", INSULT) is None
    with pytest.raises(ConfigError, match="no rule for 'The reply is short"):
        criticise("1 + 2?", "It is 3.", "The reply is short.")


def test_function_critic_prefers_the_completion_with_fewer_faults():
    # Faults of RUDE: 2 of 2 principles; of the others 0 and 1 of 2. P = (1 + faults of second - of first) / 2.
    first, second = [RUDE, RUDE, "It is 3."], ["It is 3.", "You fool.", "It is 3."]
    found = world(INSULT, REPETITION).compare(["1 + 2?"] * 3, first, second, [{}] * 3)
    assert found.tolist() == [0.0, 0.25, 0.5]


def test_rounds_revise_by_further_principles():
    critic = world(INSULT, REPETITION)
    (made,) = revised(critic, ["1 + 2?"], [RUDE], [0], rounds=8)
    assert (made.original, made.revised) == (RUDE, "It is 3.")
    assert sorted(made.critique.split(". ")) == sorted(["'You are so dumb.' is rude 'It is 3.' is a repetition"])
    (kept,) = revised(critic, ["1 + 2?"], ["It is 3."], [0], rounds=8)
    assert (kept.revised, kept.critique) == ("It is 3.", "")


class SecondThoughts:
    """A critic that finds no fault in the first round, and one without a revision in the second."""

    def __init__(self) -> None:
        self.rounds = iter(["", "It is rude."])

    def revise(self, prompts, completions, seeds) -> list[Revision]:
        critique = next(self.rounds)
        return [Revision(prompt="p", original=one, critique=critique, revised=one, principle="") for one in completions]


def test_fault_without_a_revision_is_kept_with_its_critique():
    critic: Any = SecondThoughts()
    (found,) = revised(critic, ["p"], ["You fool."], [0], rounds=2)
    assert (found.revised, found.critique) == ("You fool.", "It is rude.")


class Table:
    """Probabilities by the texts of a comparison."""

    def to(self, device: torch.device | str) -> None: ...

    def compare(self, prompts, first, second, columns) -> torch.Tensor:
        known = {("a", "b"): 0.8, ("a", "d"): 0.4, ("b", "d"): float("nan")}
        return torch.tensor([known[pair] for pair in zip(first, second, strict=True)])


def test_win_rate_is_the_mean_over_the_other_finished_completions():
    # a: (0.8 + 0.4) / 2; b: 1 - 0.8, without the comparison that has no answer; c is truncated; d: 1 - 0.4.
    found = win_rates(Table(), "p", ["a", "b", "c", "d"], [True, True, False, True], {})
    assert found == pytest.approx((0.6, 0.2, None, 0.6))


def test_principles_come_from_a_list_or_a_yaml_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("- The reply is polite.\n- The reply is short.\n")
    assert read_principles(str(file)) == ("The reply is polite.", "The reply is short.")
    assert read_principles(["One."]) == ("One.",)
    file.write_text("[]")
    for given, message in (
        (str(file), f"list of sentences in {file} that describe a good reply, got an empty list"),
        ((), "got an empty list"),
        ([""], "expected a list of sentences"),
        (str(tmp_path / "no.yaml"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=message):
            read_principles(given)


@pytest.mark.parametrize("returned", [3, ("one",), ("one", None)])
def test_other_results_of_a_critic_are_refused(returned):
    critic = world(INSULT)
    critic.call = lambda prompt, completion, principle: returned
    with pytest.raises(ConfigError, match=r"expected None or the texts \(critique, revision\)"):
        critic.criticise("p", "c", INSULT)
