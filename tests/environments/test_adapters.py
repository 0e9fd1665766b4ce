"""Adapters of Gymnasium and verifiers, with fakes of the parts of their interfaces that the adapters use."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from postrain.environments import verifiers
from postrain.environments.gymnasium import GymnasiumEnvironment
from postrain.environments.verifiers import VerifiersEnvironment
from postrain.errors import ConfigError

# Gymnasium ------------------------------------------------------------------------------------------------------------


class Discrete:
    n, start = 2, 0


class Text:
    def contains(self, value: str) -> bool:
        return value.islower()


class Box: ...


class Corridor:
    """Cells 0 to 2; action 1 goes right, 0 left; the reward of cell 2 ends it."""

    metadata: ClassVar = {"render_modes": ["human", "ansi"]}

    def __init__(self, space: Any, render_mode: str | None = None) -> None:
        self.action_space, self.render_mode, self.cell = space, render_mode, 0

    def reset(self, seed: int) -> tuple[int, dict[str, Any]]:
        self.cell = seed % 2
        return self.cell, {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.cell += 1 if action in (1, "right") else -1
        return self.cell, float(self.cell == 2), self.cell == 2, self.cell < 0, {}

    def render(self) -> str:
        return "\x1b[1m" + "".join(f"\x1b[41m{at}\x1b[0m" if at == self.cell else str(at) for at in range(3)) + "\n"

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def gymnasium(monkeypatch: pytest.MonkeyPatch) -> None:
    class Error(Exception): ...

    def make(name: str, **settings: Any) -> Corridor:
        spaces = {"Corridor-v0": Discrete, "Words-v0": Text, "Box-v0": Box}
        if name not in spaces:
            raise Error(f"no\n{name}")
        return Corridor(spaces[name](), **settings)

    module: Any = ModuleType("gymnasium")
    module.make, module.error = make, SimpleNamespace(Error=Error)
    monkeypatch.setitem(sys.modules, "gymnasium", module)


def test_gymnasium_actions_are_words_and_each_step_is_rewarded() -> None:
    environment = GymnasiumEnvironment(id="Corridor-v0", actions=("left", "right"), instruction="Go right.")
    (row,) = environment.make_rows("train", 1, 0)
    start = row["seed"] % 2
    cells = "".join(f"[{at}]" if at == start else str(at) for at in range(3))
    assert row["prompt"] == f"Go right.\n{cells}\nWrite left or right."
    state = environment.reset(row["prompt"], {"seed": 0})
    unknown = environment.step(state, "up")
    assert (unknown.messages[0].content, unknown.errors, unknown.done) == ("Write left or right.", 1, False)
    first = environment.step(state, " Right.\n")
    assert (first.messages[0].content, first.reward, first.done) == ("0[1]2", 0.0, False)
    last = environment.step(first.state, "right")
    assert (last.reward, last.done, environment.metrics(last.state)) == (1.0, True, {"return": 1.0})


def test_gymnasium_actions_without_words_are_numbers_and_observations_are_written() -> None:
    environment = GymnasiumEnvironment(id="Corridor-v0", settings={"render_mode": None})
    state = environment.reset("", {"seed": 0})
    assert environment.step(state, "2").messages[0].content == "Write a number from 0 to 1."
    assert environment.step(state, "1").messages[0].content == "1"
    assert environment.step(environment.reset("", {"seed": 0}), "0").done


def test_gymnasium_text_actions_are_the_message() -> None:
    environment = GymnasiumEnvironment(id="Words-v0", settings={"render_mode": None})
    state = environment.reset("", {"seed": 0})
    assert environment.step(state, "UP").errors == 1
    assert environment.step(state, "right").messages[0].content == "1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "Nothing-v0"}, r"^environment.id=Nothing-v0: no Nothing-v0$"),
        ({"id": "Box-v0"}, r"^environment.id=Box-v0: its actions are Box; expected Discrete or Text$"),
        ({"id": "Corridor-v0", "actions": ("go",)}, r"^environment.actions: Corridor-v0 has 2 actions; write a word"),
        ({"id": "Corridor-v0", "settings": {"size": 3}}, r"^environment.id=Corridor-v0: .*unexpected keyword"),
    ],
)
def test_a_gymnasium_environment_that_does_not_fit_is_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GymnasiumEnvironment(**settings).make_rows("train", 1, 0)


# verifiers ------------------------------------------------------------------------------------------------------------


@dataclass
class Said:
    role: str
    content: Any
    tool_call_id: str | None = None


class Asking:
    """An environment of verifiers that asks until the answer is right, or calls its tool."""

    def __init__(self, tools: bool) -> None:
        declared = SimpleNamespace(name="add", description="Adds.", parameters={"type": "object", "properties": {}})
        self.tool_defs = [declared] if tools else None

    def get_dataset(self) -> list[dict[str, Any]]:
        return [{"prompt": [{"role": "user", "content": "2 + 2?"}], "answer": "4", "example_id": 0}]

    get_eval_dataset = get_dataset

    async def run_rollout(self, asked: Mapping[str, Any], client: Any, model: str, sampling: Any) -> dict[str, Any]:
        said: list[Any] = [Said("user", asked["prompt"][0]["content"])]
        for turn in range(3):
            response = await client.get_response(said, model, sampling, tools=self.tool_defs)
            said.append(response.message)
            if response.message.tool_calls:
                call = response.message.tool_calls[0]
                said.append(Said("tool", f"{call.name} {call.arguments}", call.id))
            elif response.message.content == asked["answer"]:
                return {"reward": 1.0, "metrics": {"num_turns": turn + 1}, "error": None}
            else:
                said.append(Said("user", [SimpleNamespace(text="Again.")]))
        return {"reward": 0.0, "metrics": {"num_turns": 3}, "error": None}


@dataclass
class Record:
    """The types of messages that the adapter makes."""

    id: str = ""
    name: str = ""
    arguments: str = ""
    created: int = 0
    model: str = ""
    message: Any = None
    role: str = "assistant"
    content: str = ""
    tool_calls: Any = None
    finish_reason: str = ""
    is_truncated: bool = False
    further: dict[str, Any] = field(default_factory=dict)


class Client:
    def __init__(self, config: Any) -> None: ...


@pytest.fixture
def with_verifiers(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("verifiers")
    module.Client = Client
    module.types = SimpleNamespace(ToolCall=Record, ResponseMessage=Record, Response=Record)

    def load_environment(name: str, **arguments: Any) -> Asking:
        if name != "asking":
            raise ValueError("not\ninstalled")
        return Asking(**arguments)

    module.load_environment = load_environment
    monkeypatch.setitem(sys.modules, "verifiers", module)
    verifiers.load_environment.cache_clear()
    verifiers.policy_class.cache_clear()


@pytest.mark.usefixtures("with_verifiers")
def test_a_rollout_of_verifiers_waits_for_the_policy_and_is_scored_at_its_end() -> None:
    environment = VerifiersEnvironment(id="asking", arguments={"tools": False})
    (row,) = environment.make_rows("train", 8, 0)
    assert "tools" not in row
    first = environment.step(environment.reset("", row), "5")
    assert ([message.content for message in first.messages], first.done) == (["Again."], False)
    last = environment.step(first.state, "4")
    assert (last.done, last.reward, environment.metrics(last.state)) == (True, 1.0, {"num_turns": 2.0})


@pytest.mark.usefixtures("with_verifiers")
def test_json_calls_are_tool_calls_for_verifiers() -> None:
    environment = VerifiersEnvironment(id="asking", arguments={"tools": True})
    (row,) = environment.make_rows("eval", 8, 0)
    assert [tool["name"] for tool in row["tools"]] == ["add"]
    reply = environment.step(environment.reset("", row), '{"name": "add", "arguments": {"a": 2}}')
    assert [(message.role, message.content) for message in reply.messages] == [("tool", 'add {"a": 2}')]
    assert reply.calls == 1


@pytest.mark.usefixtures("with_verifiers")
def test_a_rollout_that_the_policy_leaves_is_cancelled() -> None:
    environment = VerifiersEnvironment(id="asking", arguments={"tools": False})
    (row,) = environment.make_rows("train", 1, 0)
    state = environment.step(environment.reset("", row), "5").state
    assert environment.metrics(state) == {}
    assert state.rollout.cancelled()


@pytest.mark.usefixtures("with_verifiers")
def test_an_environment_that_verifiers_cannot_load_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^environment.id=other: not installed$"):
        VerifiersEnvironment(id="other").make_rows("train", 1, 0)
