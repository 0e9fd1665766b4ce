"""revise.py: what a model is asked, and what becomes of a completion, with an engine that says what a test scripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from postrain.data.chat import Template
from postrain.data.conversation import Message
from postrain.errors import ConfigError
from postrain.rollout.engine import Mixture
from postrain.rollout.revise import CRITIQUE, REVISION, Revision, preferences, revise
from postrain.types import Completion, Sampling, Stop
from tests.tiny import tiny_model

NANO = Path(__file__).parents[2] / "postrain" / "assets" / "nano"
KIND, BRIEF = "The reply is polite.", "The reply is short."


@dataclass
class Scripted:
    """Answers a decoded prompt with what `says` makes of it; `asked` keeps the prompts and their seeds."""

    template: Template
    says: Callable[[str], str]
    max_new_tokens: int = 8
    asked: list[tuple[str, int]] = field(default_factory=list)
    exact_logps: bool = True
    finished: bool = True

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens)

    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        texts = [self.template.decode_all(prompt.tolist()) for prompt in prompts]
        self.asked += zip(texts, seeds, strict=True)
        ids = [torch.tensor(self.template.tokenizer(self.says(text))["input_ids"]) for text in texts]
        return [Completion(row, torch.zeros(len(row)), finished=self.finished) for row in ids]


class Model(nn.Module):
    """Has nothing but a context of so many tokens."""

    def __init__(self, context: int) -> None:
        super().__init__()
        self.inner = tiny_model("llama")
        self.inner.config.max_position_embeddings = context

    def get_base_model(self) -> nn.Module:
        return self.inner


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(AutoTokenizer.from_pretrained(NANO))


def by_turn(text: str) -> str:
    """A critique where one is asked for, else a revision."""
    return "Thank you, I will." if "write your reply" in text else "It is curt."


def run(
    engine: Scripted, prompts: Sequence[str], said: Sequence[str], *, context: int = 512, seeds: Sequence[int] = (5, 6)
) -> list[Revision]:
    return revise(engine, Model(context), engine.template, prompts, said, [KIND], seeds[: len(prompts)])


def test_a_reply_is_criticised_and_revised(template: Template) -> None:
    engine = Scripted(template, by_turn)
    (found,) = run(engine, ["Will you?"], [" No."])
    # It begins with the blank that its original begins with.
    assert found == Revision("Will you?", " No.", "It is curt.", " Thank you, I will.", KIND)
    (first, one), (second, other) = engine.asked
    assert one != other
    # what is asked first stands in what is asked next
    for part in ("Will you?", "No.", CRITIQUE.format(principle=KIND)):
        assert part in first
        assert part in second
    assert second.index("It is curt.") < second.index(REVISION.format(principle=KIND))


def test_a_row_depends_on_its_own_key_alone(template: Template) -> None:
    prompts, said = [f"p{i}" for i in range(8)], ["No."] * 8

    def drawn(order: Sequence[int]) -> dict[int, tuple[str, list[int]]]:
        engine = Scripted(template, by_turn)
        texts = [prompts[i] for i in order], [said[i] for i in order]
        found = revise(engine, Model(512), template, *texts, [KIND, BRIEF], [100 + i for i in order])
        halves = [key for _, key in engine.asked]
        return {
            i: (item.principle, halves[place :: len(order)])
            for place, (i, item) in enumerate(zip(order, found, strict=True))
        }

    whole = drawn(range(8))
    assert {principle for principle, _ in whole.values()} == {KIND, BRIEF}
    assert drawn((6, 2)) == {i: whole[i] for i in (6, 2)}


def test_a_conversation_beyond_the_context_keeps_the_reply(template: Template) -> None:
    engine = Scripted(template, by_turn)
    short, long = run(engine, ["Hi.", "word " * 300], ["No.", "No."], context=256)
    assert short.revised == "Thank you, I will."
    assert (long.critique, long.revised) == ("", "No.")
    assert len(engine.asked) == 2
    (unasked,) = run(engine, ["word " * 300], ["No."], context=256)
    assert unasked.revised == "No."


def test_empty_critiques_change_nothing(template: Template) -> None:
    engine = Scripted(template, lambda text: "" if "write your reply" in text else "It is curt.")
    (found,) = run(engine, ["Hi."], ["No."])
    assert found.revised == "No."


def test_a_truncated_revision_is_discarded(template: Template) -> None:
    (found,) = run(Scripted(template, by_turn, finished=False), ["Will you?"], ["No."])
    assert (found.critique, found.revised) == ("It is curt.", "No.")


def test_a_prompt_of_several_turns_is_asked_with_all_of_them(template: Template) -> None:
    engine = Scripted(template, by_turn)
    turns = (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Will you?"))
    (found,) = revise(engine, Model(512), template, [turns], ["No."], [KIND], [5])
    assert all(turn.content in asked for turn in turns for asked, _ in engine.asked)
    (row,) = preferences([found], [{}])
    assert row["prompt"][1] == {"role": "assistant", "content": "Hello."}


def test_revisions_become_pairs_unless_nothing_changed() -> None:
    changed, same = Revision("p", "No.", "c", "Thanks, no.", KIND), Revision("q", "No.", "c", "No. ", KIND)
    assert preferences([changed, same], [{"row": 3}, {"row": 4}]) == [
        {"prompt": "p", "chosen": "Thanks, no.", "rejected": "No.", "critique": "c", "principle": KIND, "row": 3}
    ]


def test_revise_without_principles_is_refused(template: Template) -> None:
    with pytest.raises(ConfigError, match="principles: expected at least one sentence"):
        revise(Scripted(template, by_turn), Model(512), template, ["Hi."], ["No."], [], [1])


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("prompt", "begins"),
    [
        (TRANSCRIPT, f"{TRANSCRIPT} What?"),
        ((Message("user", "Hi"), Message("assistant", "Well,", prefill=True)), "HiWell, What?"),
        (f"{TRANSCRIPT} Well,", f"{TRANSCRIPT} Well, What?"),
    ],
)
def test_a_critique_keeps_a_transcript_as_it_stands_and_continues_what_was_begun(prompt, begins):
    plain = Template(AutoTokenizer.from_pretrained(NANO), mode="plain")
    engine = Scripted(plain, by_turn)
    revise(engine, Model(600), plain, [prompt], [" What?"], [KIND], [1])
    assert engine.asked[0][0].startswith(begins)
