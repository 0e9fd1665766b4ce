"""Critique and revision: prompts and results, with a scripted engine."""

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
    """An engine that returns `reply(prompt)`; `calls` records prompts and seeds."""

    template: Template
    reply: Callable[[str], str]
    max_new_tokens: int = 8
    calls: list[tuple[str, int]] = field(default_factory=list)
    exact_logps: bool = True
    finished: bool = True

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.max_new_tokens)

    def generate(
        self, model: nn.Module | Mixture, prompts: Sequence[Tensor], *, seeds: Sequence[int], stop: Stop
    ) -> list[Completion]:
        texts = [self.template.decode_all(prompt.tolist()) for prompt in prompts]
        self.calls += zip(texts, seeds, strict=True)
        ids = [torch.tensor(self.template.tokenizer(self.reply(text))["input_ids"]) for text in texts]
        return [Completion(row, torch.zeros(len(row)), finished=self.finished) for row in ids]


class Model(nn.Module):
    """A model with a context of `context` tokens."""

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
    """A revision if the prompt requests one, else a critique."""
    return "Thank you, I will." if "write your reply" in text else "It is curt."


def run(
    engine: Scripted,
    prompts: Sequence[str],
    replies: Sequence[str],
    *,
    context: int = 512,
    seeds: Sequence[int] = (5, 6),
) -> list[Revision]:
    return revise(engine, Model(context), engine.template, prompts, replies, [KIND], seeds[: len(prompts)])


def test_a_reply_is_criticised_and_revised(template: Template) -> None:
    engine = Scripted(template, by_turn)
    (found,) = run(engine, ["Will you?"], [" No."])
    # The revision has the leading blank of the original.
    assert found == Revision("Will you?", " No.", "It is curt.", " Thank you, I will.", KIND)
    (first, one), (second, other) = engine.calls
    assert one != other
    # The second prompt contains the first one.
    for part in ("Will you?", "No.", CRITIQUE.format(principle=KIND)):
        assert part in first
        assert part in second
    assert second.index("It is curt.") < second.index(REVISION.format(principle=KIND))


def test_a_revision_depends_on_its_seed_only(template: Template) -> None:
    prompts, replies = [f"p{i}" for i in range(8)], ["No."] * 8

    def drawn(order: Sequence[int]) -> dict[int, tuple[str, list[int]]]:
        engine = Scripted(template, by_turn)
        texts = [prompts[i] for i in order], [replies[i] for i in order]
        found = revise(engine, Model(512), template, *texts, [KIND, BRIEF], [100 + i for i in order])
        halves = [key for _, key in engine.calls]
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
    assert len(engine.calls) == 2
    (too_long,) = run(engine, ["word " * 300], ["No."], context=256)
    assert too_long.revised == "No."


def test_empty_critiques_change_nothing(template: Template) -> None:
    engine = Scripted(template, lambda text: "" if "write your reply" in text else "It is curt.")
    (found,) = run(engine, ["Hi."], ["No."])
    assert found.revised == "No."


def test_a_truncated_revision_is_discarded(template: Template) -> None:
    (found,) = run(Scripted(template, by_turn, finished=False), ["Will you?"], ["No."])
    assert (found.critique, found.revised) == ("It is curt.", "No.")


def test_a_multi_turn_prompt_is_sent_with_all_turns(template: Template) -> None:
    engine = Scripted(template, by_turn)
    turns = (Message("user", "Hi."), Message("assistant", "Hello."), Message("user", "Will you?"))
    (found,) = revise(engine, Model(512), template, [turns], ["No."], [KIND], [5])
    assert all(turn.content in text for turn in turns for text, _ in engine.calls)
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
def test_a_critique_keeps_transcripts_and_prefilled_replies(prompt, begins):
    plain = Template(AutoTokenizer.from_pretrained(NANO), mode="plain")
    engine = Scripted(plain, by_turn)
    revise(engine, Model(600), plain, [prompt], [" What?"], [KIND], [1])
    assert engine.calls[0][0].startswith(begins)
