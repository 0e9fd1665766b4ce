"""The bundled environments: their best players have no regret, prompts and held-out prompts differ, grades."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from postrain.data.chat import Template
from postrain.data.conversation import Messages, user
from postrain.data.kinds.prompt import Prompts
from postrain.environments.base import MessageEnvironment
from postrain.environments.facts_lookup import FactsLookup
from postrain.environments.guess_number import Game, GuessNumber, best_questions
from postrain.environments.key_and_door import KeyAndDoor, Walk
from postrain.environments.python_tool import PythonTool
from postrain.environments.rows import Demonstrations, EnvironmentPrompts, play
from postrain.errors import ConfigError
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.sources import ModelSource
from postrain.rollout.collect import collect
from postrain.rollout.environment import SINGLE_TURN
from postrain.rollout.local import LocalEngine

PYTHON = PythonTool(call_format="text", allow_execution=True)
BUNDLED = [GuessNumber(), KeyAndDoor(), FactsLookup(call_format="text"), PYTHON]


def final(environment: MessageEnvironment, columns: dict[str, Any], player: Callable[[Any], str]) -> tuple[Any, float]:
    """The last state and the sum of rewards of an episode."""
    state, total = environment.reset("", columns), 0.0
    for _ in range(environment.max_turns):
        reply = environment.step(state, player(state))
        state, total = reply.state, total + (reply.reward or 0.0)
        if reply.done:
            break
    return state, total


def test_best_questions_are_the_mean_depth_of_a_balanced_tree() -> None:
    # Of 3 numbers one is found first and two second. Of 16: 1 · 1 + 2 · 2 + 4 · 3 + 8 · 4 + 1 · 5 = 54.
    assert (best_questions(1), best_questions(3), best_questions(16)) == (1, 5 / 3, 54 / 16)


def test_halving_has_no_regret_on_average() -> None:
    def halving(game: Game) -> str:
        return f"Is it {(game.low + game.high) // 2}?"

    game = GuessNumber(n=16)
    ended = [final(game, {"answer": str(target)}, halving) for target in range(1, 17)]
    assert sum(game.metrics(state)["regret"] for state, _ in ended) == 0
    # The reward of q questions is 1 − (q − 1) / 8, so their sum is 16 − (54 − 16) / 8.
    assert sum(reward for _, reward in ended) == 16 - 38 / 8


def test_a_guess_outside_of_the_numbers_that_are_left_is_an_error() -> None:
    game = GuessNumber(n=8)
    first = game.step(game.reset("", {"answer": 7}), "4")
    assert (first.messages[0].content, first.errors, first.done) == ("No. It is from 5 to 8.", 0, False)
    for message in ("4", "nine", "", "9" * 50):
        again = game.step(first.state, message)
        assert (again.messages, again.errors, again.state.questions) == (first.messages, 1, 2)
    assert game.metrics(first.state) == {"success": 0.0, "questions": 8.0, "regret": 8 - best_questions(8)}


def test_the_best_path_has_no_regret_from_every_start() -> None:
    def best(walk: Walk) -> str:
        goal = walk.door if walk.has_key else walk.key
        if walk.room == goal:
            return "Open." if walk.has_key else "take"
        return "right" if walk.room < goal else "left"

    environment, rooms = KeyAndDoor(), range(1, 6)
    for room, key, door in ((room, key, door) for room in rooms for key in rooms for door in rooms):
        state, reward = final(environment, {"room": room, "key": key, "door": door}, best)
        assert (environment.metrics(state), reward) == ({"success": 1.0, "regret": 0.0}, 1.0)


def test_walls_and_the_locked_door_change_nothing_and_are_errors() -> None:
    environment = KeyAndDoor()
    state = environment.reset("", {"room": 1, "key": 2, "door": 1})
    for message in ("left", "open", "take", "jump"):
        reply = environment.step(state, message)
        assert (reply.state.room, reply.state.has_key, reply.errors, reply.done) == (1, False, 1, False)


def test_search_finds_the_answer_of_every_question() -> None:
    environment = FactsLookup(call_format="text")
    for row in environment.make_rows("eval", 20, 0):
        state = environment.reset(row["prompt"], row)
        found = environment.step(state, f"search: {row['subject']}")
        assert (found.calls, found.errors) == (1, 0)
        right, wrong = environment.step(state, found.messages[0].content), environment.step(state, "20")
        assert (right.done, right.reward, wrong.reward) == (True, 1.0, 0.0)
    state = environment.reset("", {})
    assert environment.step(state, "search: nobody").messages[0].content == "Nothing found about nobody."


def test_python_prints_the_answer_or_the_reason_of_a_failure() -> None:
    row = {"answer": "132", "expression": "47 + 85"}
    state = PYTHON.reset("", row)
    assert PYTHON.step(state, "python: print(47 + 85)").messages[0].content == "132"
    failed = PYTHON.step(state, "python: print(1 // 0)")
    assert (failed.messages[0].content, failed.errors) == (
        "error: ZeroDivisionError: integer division or modulo by zero",
        1,
    )
    assert PYTHON.step(state, "The answer is 132.").reward == 1.0
    assert [PYTHON.step(state, f"It is {answer}.").reward for answer in ("132.0", "0.132", "1,132")] == [1, 0, 0]


def test_python_needs_permission() -> None:
    with pytest.raises(ConfigError, match=r"^environment.allow_execution: this tool runs Python"):
        PythonTool()


@pytest.mark.parametrize("environment", BUNDLED, ids=lambda one: type(one).__name__)
def test_held_out_prompts_are_not_in_training(environment: MessageEnvironment) -> None:
    loaded = EnvironmentPrompts(environment=environment, count=300).load(eval_rows=30)
    assert loaded.held_out is not None
    train, held_out = ({row.values["prompt"] for row in table.rows} for table in (loaded.train, loaded.held_out))
    assert (len(loaded.train.rows), len(loaded.held_out.rows), train & held_out) == (300, 30, set())


def test_json_calls_declare_their_tools_and_text_calls_explain_them() -> None:
    (row,) = FactsLookup().make_rows("train", 1, 0)
    assert row["tools"][0]["function"]["name"] == "search"
    assert "Write search:" not in row["prompt"]
    (row,) = FactsLookup(call_format="text").make_rows("train", 1, 0)
    assert "tools" not in row
    assert "Write search:" in row["prompt"]


def test_demonstrations_are_episodes_of_the_environments_in_turn() -> None:
    environments = {"guess": GuessNumber(), "facts": FactsLookup(call_format="text")}
    rows = Demonstrations(environments=environments, count=6).load(eval_rows=2).train.rows
    prompts = [row.values["messages"][0]["content"] for row in rows]
    assert [" have a number " in prompt for prompt in prompts] == [True, False] * 3
    assert all(row.values["messages"][-1]["role"] == "assistant" for row in rows)


def test_an_episode_ends_with_the_message_that_ends_the_game() -> None:
    def player(state: Game, conversation: Messages) -> str:
        return str(len(conversation))

    row = play(GuessNumber(n=4), {"prompt": "Guess.", "answer": "3"}, player)
    assert [message["content"] for message in row["messages"]] == ["Guess.", "1", "No. It is from 2 to 4.", "3"]


def test_an_environment_without_prompts_is_refused_as_data() -> None:
    none: Any = SINGLE_TURN
    with pytest.raises(ConfigError, match=r"^data=environment: SingleTurn has no prompts of its own; choose"):
        EnvironmentPrompts(environment=none)


def test_the_bundled_model_plays_every_environment() -> None:
    """Untrained nano_tools finds numbers and calls tools: RL has moves to reinforce."""
    resolved = ModelSource(path="bundled:nano_tools").resolve()
    policy, template = load_causal(resolved, dtype=torch.float32), Template(load_tokenizer(resolved), install=False)
    engine = LocalEngine(max_new_tokens=40)

    def sampled(environment: MessageEnvironment) -> dict[str, float]:
        rows = environment.make_rows("eval", 8, 0)
        ids = tuple(template.encode_prompt(user(row["prompt"])) for row in rows)
        prompts = Prompts(ids, tuple(row["prompt"] for row in rows), tuple(rows), tuple(range(8)))
        found = collect(engine, policy, template, prompts, seeds=range(8), environment=environment)
        return {name.removeprefix("environment/"): value.value() for name, value in found.metrics().items()}

    assert sampled(GuessNumber())["success"] >= 0.75
    facts = sampled(FactsLookup(call_format="text"))
    # The demonstrations look up half of the facts.
    assert 0 < facts["calls"] < 2
    assert facts["errors"] == 0
