"""Episodes of message environments: replies continue the sampled tokens, calls of tools fail without ending the run."""

import asyncio
import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from postrain.data.chat import Template
from postrain.data.conversation import Message, Messages, user
from postrain.data.kinds.prompt import Prompts
from postrain.data.tool_calls import declare
from postrain.environments.base import MessageEnvironment, Reply
from postrain.environments.tool_environment import ToolEnvironment
from postrain.environments.tools import CallFormat, Tool, Toolbox, ToolError
from postrain.errors import ConfigError
from postrain.models.end_tokens import set_end_ids
from postrain.models.loading import load_tokenizer
from postrain.models.sources import ModelSource
from postrain.rollout.ahead import from_plain, to_plain
from postrain.rollout.collect import Rollouts, collect
from postrain.rollout.observations import checked_reply
from postrain.rollout.turns import roll_out
from postrain.types import Completion, RewardBatch, Sampling
from tests.rollout.scripted import END_OF_TURN, Scripted


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer(ModelSource(path="bundled:nano").resolve())


@pytest.fixture(scope="module")
def template(tokenizer: Any) -> Template:
    return Template(tokenizer, install=False)


@dataclass(frozen=True, kw_only=True)
class Guessing(MessageEnvironment):
    """Answers higher or lower; rewards 1 for the right guess, −¼ for a wrong one."""

    max_turns: int = 5

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> tuple[int, int]:
        return int(columns["answer"]), 0

    def step(self, state: tuple[int, int], message: str) -> Reply:
        now = (state[0], state[1] + 1)
        if int(message) == state[0]:
            return Reply(now, reward=1.0, done=True)
        return Reply(now, user("Higher." if int(message) < state[0] else "Lower."), reward=-0.25)

    def metrics(self, state: tuple[int, int]) -> Mapping[str, float]:
        return {"questions": state[1]}


@dataclass(frozen=True, kw_only=True)
class Echo(MessageEnvironment):
    """Answers a message with the same text."""

    max_turns: int = 2

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> None: ...

    def step(self, state: None, message: str) -> Reply:
        return Reply(None, user(message))


@dataclass
class Fixed(Scripted):
    """Returns the same tokens for every row, and records the prompts."""

    letters: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    seen: list[torch.Tensor] = field(default_factory=list)

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list[Completion]:
        self.seen.extend(prompts)
        return [Completion(self.letters, torch.zeros(len(self.letters)), True) for _ in prompts]


GUESS = user("Guess.")


class Last:
    """A reward that records what it scores."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def to(self, device: Any) -> None: ...

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], columns: Any) -> RewardBatch:
        self.seen += completions
        return RewardBatch(torch.zeros(len(completions)), {})


def one_prompt(template: Template, messages: Messages = GUESS, **columns: Any) -> Prompts:
    return Prompts((template.encode_prompt(messages),), ("Guess.",), ({"answer": "7", **columns},), (0,))


def rolled_out(
    template: Template,
    turns: Sequence[str],
    environment: MessageEnvironment,
    *,
    tokens: int = 200,
    messages: Messages = GUESS,
    reward: Any = None,
) -> tuple[Scripted, Rollouts]:
    engine = Scripted(template, [text + END_OF_TURN for text in turns], Sampling(tokens))
    batch = one_prompt(template, messages)
    found = collect(engine, nn.Linear(1, 1), template, batch, seeds=[5], environment=environment, reward=reward)
    return engine, found


def assistant(text: str) -> Message:
    return Message("assistant", text)


def test_an_episode_has_the_tokens_of_the_rendered_conversation(template: Template) -> None:
    _, found = rolled_out(template, ["3", "9", "7"], Guessing())
    conversation = (*user("Guess."), assistant("3"), *user("Higher."), assistant("9"), *user("Lower."))
    written = torch.cat([template.encode_prompt(conversation), template.encode_continuation("7" + END_OF_TURN)])
    assert found.rows.ids[0].equal(written)
    own = found.rows.ids[0][found.rows.supervised[0]]
    assert template.decode_all(own.tolist()) == "3<|end|>9<|end|>7<|end|>"
    # −¼ − ¼ + 1
    assert found.reward_B.tolist() == [0.5]
    assert found.turn_rewards == ((-0.25, -0.25, 1.0),)
    assert found.turn_tokens == ((2, 2, 2),)
    assert found.finished_B.tolist() == [True]
    metrics = {name: value.value() for name, value in found.metrics().items()}
    assert (metrics["environment/turns"], metrics["environment/questions"], metrics["environment/calls"]) == (3, 3, 0)


def test_sampled_tokens_are_never_encoded_again(template: Template, tokenizer: Any) -> None:
    """The policy writes 7 after tokens that no tokenizer writes: a word as its letters."""
    letters = torch.tensor([*tokenizer.convert_tokens_to_ids(list("the")), *template.encode_continuation(END_OF_TURN)])
    assert len(letters) > len(template.encode_continuation("the" + END_OF_TURN))

    engine = Fixed(template, [], Sampling(40), letters=letters)
    (episode,) = roll_out(engine, nn.Linear(1, 1), template, one_prompt(template), seeds=[0], environment=Echo())
    head = torch.cat([engine.seen[0], letters])
    assert engine.seen[1][: len(head)].equal(head)
    assert engine.seen[1][len(head) :].equal(template.encode_replies(user("the")))
    assert episode.ids[episode.policy_mask].equal(torch.cat([letters, letters]))


OPENING_ENDS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A template whose answers end with the header of the next turn."""


def test_header_with_which_an_answer_ended_is_not_repeated_before_the_reply(tokenizer: Any) -> None:
    fresh = copy.deepcopy(tokenizer)
    fresh.chat_template = OPENING_ENDS
    header = fresh.convert_tokens_to_ids("<|user|>")
    set_end_ids(fresh, [header])
    template = Template(fresh, install=False)
    letters = torch.tensor([*fresh("the", add_special_tokens=False).input_ids, header])
    engine = Fixed(template, [], Sampling(40), letters=letters)
    (episode,) = roll_out(engine, nn.Linear(1, 1), template, one_prompt(template), seeds=[0], environment=Echo())
    reply = template.encode_replies(user("the"))
    assert reply[0] == header
    assert episode.ids.equal(torch.cat([letters, reply[1:]] * 2))


THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>"
    "{% if m.role == 'assistant' and loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|><think>{% endif %}"
)


def test_replies_are_rendered_for_a_template_that_changes_earlier_answers(tokenizer: Any) -> None:
    before = tokenizer.chat_template
    tokenizer.chat_template = THINKING
    try:
        ids = Template(tokenizer, install=False).encode_replies(user("¶ or b"))
    finally:
        tokenizer.chat_template = before
    assert tokenizer.decode(ids) == "\n<|user|>¶ or b<|end|>\n<|assistant|><think>"


def test_plain_text_continues_with_the_reply(tokenizer: Any) -> None:
    ids = Template(tokenizer, mode="plain", install=False).encode_replies(user(" Higher."))
    assert tokenizer.decode(ids) == " Higher."


def test_a_reward_scores_the_last_message_alone(template: Template) -> None:
    reward = Last()
    _, found = rolled_out(template, ["3", "7"], Guessing(), reward=reward)
    rolled_out(template, ["3", "4"], Guessing(max_turns=2), reward=reward)
    assert reward.seen == ["7", ""]
    assert found.completions == ("3<|end|>\n<|user|>\nHigher.<|end|>\n<|assistant|>\n7<|end|>",)


def test_an_environment_that_never_ends_stops_at_max_turns(template: Template) -> None:
    engine, found = rolled_out(template, ["1"] * 5, Guessing())
    assert (len(engine.calls), found.finished_B.tolist()) == (5, [False])


def test_one_budget_covers_the_policys_tokens_of_all_turns(template: Template) -> None:
    engine, found = rolled_out(template, ["3", "4", "5"], Guessing(), tokens=5)
    assert [call[2].limits for call in engine.calls] == [None, (3,), (1,)]
    # 2 + 2 + 1 tokens; the last message is truncated, so the environment does not answer it.
    assert found.turn_tokens == ((2, 2, 1),)
    assert found.turn_rewards == ((-0.25, -0.25, 0.0),)


def test_episodes_sampled_ahead_keep_their_turns_in_a_checkpoint(template: Template) -> None:
    engine = Scripted(template, ["3<|end|>", "7<|end|>"], Sampling(40))
    arguments: Any = (engine, nn.Linear(1, 1), template, one_prompt(template))
    (episode,) = roll_out(*arguments, seeds=[0], environment=Guessing())
    again = from_plain(to_plain(episode))
    names = ("turn_tokens", "turn_rewards", "last_message", "finished", "stats")
    assert [getattr(again, name) for name in names] == [getattr(episode, name) for name in names]
    assert again.ids.equal(episode.ids)


@pytest.mark.parametrize(
    "reply",
    [None, Reply(None), Reply(None, ("text",)), Reply(None, done=True, reward=float("nan"))],  # type: ignore[arg-type]
)
def test_an_invalid_reply_is_a_one_line_error(reply: Any) -> None:
    class Odd(Guessing):
        def step(self, state: Any, message: str) -> Any:
            return reply

    with pytest.raises(ConfigError, match=r"^environment .*Odd: returned .*; expected a Reply") as caught:
        checked_reply(Odd(), None, "7")
    assert "\n" not in str(caught.value)


# Tools ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Tools(ToolEnvironment):
    timeout: float = 0.2
    max_result_characters: int = 20

    def tools(self, columns: Mapping[str, Any]) -> Sequence[Tool]:
        def add(a: int, b: int) -> Any:
            """Adds.

            Args:
                a: A number.
                b: Another.
            """
            return a + b

        def act(what: str) -> Any:
            """Acts.

            Args:
                what: What.
            """
            if what == "hang":
                time.sleep(5)
            if what == "exit":
                raise SystemExit(0)
            if what == "refuse":
                raise ToolError("not today")
            return {"long": "x" * 3_000_000, "object": object()}.get(what, f"did {what}")

        return add, act

    def grade(self, columns: Mapping[str, Any], answer: str) -> float:
        return float(answer == columns["answer"])


def called(name: str, **arguments: Any) -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {str(arguments).replace(chr(39), chr(34))}}}</tool_call>'


def answers(message: str, **settings: Any) -> tuple[list[str], int, int]:
    environment = Tools(**settings)
    reply = environment.step(environment.reset("", {"answer": "7"}), message)
    return [message.content for message in reply.messages], reply.calls, reply.errors


def test_several_calls_are_answered_in_order_by_tool_messages(tokenizer: Any) -> None:
    template = Template(tokenizer, mode="tools", install=False)
    declared = declare(Tools().tools({}))
    written = called("add", a=3, b=4) + called("act", what="well")
    _, found = rolled_out(template, [written, "7"], Tools(), messages=(*declared, *user("Go.")))
    assert found.completions[0].removeprefix(written) == (
        "<|end|>\n<|user|>\n<tool_response>\n7\n</tool_response>\n<tool_response>\ndid well\n</tool_response><|end|>\n"
        "<|assistant|>\n7<|end|>"
    )
    assert found.reward_B.tolist() == [1.0]
    metrics = {name: value.value() for name, value in found.metrics().items()}
    expected = {"turns": 2, "calls": 2, "errors": 0, "cut": 0, "success": 1}
    assert {name: metrics[f"environment/{name}"] for name in expected} == expected


@pytest.mark.parametrize(
    ("message", "reply"),
    [
        (called("act", what="exit"), "error: act failed with SystemExit: 0"),
        (called("act", what="refuse"), "error: not today"),
        (
            called("act", what="object"),
            "error: act failed with TypeError: Object of type object is not JSON serializable",
        ),
        (called("act", what="long"), "x" * 20 + " ... (3000000 characters)"),
        (called("add", a=3), "error: add: the argument b is missing"),
        (called("add", a=3, b=4, c=5), "error: add: there is no argument c; the arguments are a, b"),
        (called("add", a=3, b="4"), "error: add: the argument b has to be integer"),
        (called("sub", a=3), "error: there is no tool sub; the tools are add, act"),
        ("<tool_call>{nothing}</tool_call>", "error: a call is not valid JSON with name and arguments"),
    ],
)
def test_a_failed_call_is_a_counted_reply(message: str, reply: str) -> None:
    assert answers(message) == ([reply], 1, 1)


def test_a_lone_surrogate_in_a_reply_is_replaced(template: Template) -> None:
    (result,) = (
        Tools().step(Tools().reset("", {}), r'<tool_call>{"name": "\ud83d", "arguments": {}}</tool_call>').messages
    )
    assert "\ud83d" in result.content
    ids = template.encode_replies(user(f"a{result.content[-1:]}\ud83d\u00e9"))
    assert f"a{result.content[-1:]}?\u00e9" in template.decode_all(ids.tolist())


def test_calls_that_hang_share_one_time_limit() -> None:
    """Both are started before the first is waited for, so both exceed the same limit; the third has its result."""
    slow = "error: act took longer than 0.2 seconds"
    message = called("act", what="hang") * 2 + called("add", a=3, b=4)
    assert answers(message) == ([slow, slow, "7"], 3, 2)


def test_text_calls_are_lines_with_the_name_of_a_tool() -> None:
    _, act = Tools().tools({})
    toolbox = Toolbox({"act": act}, "text", 1.0, 20)
    results = toolbox.run("I look.\nact: well done \nother: thing\nact: more")
    (reply,) = toolbox.replies(results)
    assert (reply.content, len(results)) == ("did well done\ndid more", 2)


def test_text_calls_read_arguments_that_are_not_text_as_json() -> None:
    def double(x: int) -> int:
        """Doubles.

        Args:
            x: A number.
        """
        return 2 * x

    toolbox = Toolbox({"double": double}, "text", 1.0, 20)
    refused = "error: double: the argument x has to be integer"
    assert [one.text for one in toolbox.run("double: 7\ndouble: seven\ndouble: 1.5")] == ["14", refused, refused]


def test_text_calls_need_tools_of_at_most_one_argument() -> None:
    with pytest.raises(ConfigError, match=r"^environment.call_format=text: add has 2 arguments"):
        answers("hello", call_format="text")


@pytest.mark.parametrize(("call_format", "message"), [("text", "now:"), ("json", '{"name": "now"}')])
def test_tools_may_have_no_argument_and_be_asynchronous(call_format: CallFormat, message: str) -> None:
    async def now() -> str:
        """The time."""
        await asyncio.sleep(0)
        return "noon"

    async def search(query: str) -> str:
        """Searches.

        Args:
            query: A text.
        """
        return query

    toolbox = Toolbox({"now": now, "search": search}, call_format, 1.0, 20)
    assert [one.text for one in toolbox.run(message)] == ["noon"]
    assert toolbox.run("search:\nNothing.") == ()


def test_a_message_without_a_call_ends_the_episode_with_its_grade() -> None:
    environment = Tools()
    state = environment.reset("", {"answer": "7"})
    wrong, right = environment.step(state, "8"), environment.step(state, "7")
    assert (wrong.done, wrong.reward, right.done, right.reward) == (True, 0.0, True, 1.0)
    assert [environment.metrics(reply.state) for reply in (wrong, right)] == [{"success": 0.0}, {"success": 1.0}]
