"""Many rows in one call of the tokenizer and filled templates: the same items as row by row, for all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from postrain.data import tokenizing
from postrain.data.chat import Template
from postrain.data.conversation import Message, Messages, transcript
from postrain.data.encode import Encoder
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import Preference
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.steps import StepLayout, Steps
from postrain.data.kinds.text import Text
from postrain.data.kinds.unpaired_preference import UnpairedPreference
from postrain.data.records import Record, encode
from postrain.data.skeletons import Skeletons
from postrain.data.tokenizing import Piece, PieceTokenizer
from tests.data.helpers import MARKED, STRIPPING, UNMARKED, byte_tokenizer, metaspace_tokenizer
from tests.data.test_skeletons import INSERTING

ANSWERS = ["the answer is 4.", " 4", "<think>a</think> b", "4\n", "<|stop|> a", "ü", "the question " * 9, "a"]
PROMPTS: list[Messages] = [
    (Message("user", "What is 2 + 2?"),),
    (Message("system", "Be brief."), Message("user", " Once ")),
    (Message("user", "a"), Message("assistant", "<think>b</think> c"), Message("user", "the question " * 6)),
    (Message("user", "a"), Message("assistant", "b", in_loss=False), Message("user", "c")),
    (Message("user", "What?"), Message("assistant", "The", prefill=True)),
    transcript("\n\nHuman: a?\n\nAssistant: b\n\nHuman: What is\n\nAssistant:"),
]
PAIRS = [(prompt, answer) for prompt in PROMPTS for answer in ANSWERS]


def answered(prompt: Messages, answer: str) -> Messages:
    return (*(m for m in prompt if not m.prefill), Message("assistant", answer))


RECORDS: dict[str, list[Record]] = {
    "demonstration": [Demonstration(row=n, messages=answered(*pair)) for n, pair in enumerate(PAIRS)],
    "preference": [
        Preference(row=n, prompt=prompt, chosen=answer, rejected=f"{answer} x", margin=n / 3)
        for n, (prompt, answer) in enumerate(PAIRS)
    ],
    "unpaired preference": [
        UnpairedPreference(row=n, prompt=prompt, completion=answer, label=n % 2 == 0)
        for n, (prompt, answer) in enumerate(PAIRS)
    ],
    "prompt": [Prompt(row=n, prompt=prompt, columns={"n": n}) for n, prompt in enumerate(PROMPTS)],
    "steps": [
        Steps(row=n, prompt=prompt, steps=(answer, "then", answer), labels=(True, True, n % 2 == 0))
        for n, (prompt, answer) in enumerate(PAIRS)
    ],
    "text": [Text(row=n, text=answer) for n, answer in enumerate(ANSWERS)],
}
PLAIN = ("plain", "alpaca", "dialogue", "random")
TEMPLATES = {"marked": MARKED, "unmarked": UNMARKED, "reasoning removed": STRIPPING}
TEMPLATES |= {name: INSERTING[name] for name in ("smollm", "system in the first user turn", "namespace")}
PREFIXES = ("marked", "plain", "alpaca")


def one_by_one(self: PieceTokenizer, pieces: Sequence[Piece]) -> list[list[int]]:
    """The ids of each text by a call of its own."""

    def ids(text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    return [
        [] if not text else ids(text) if first or not self.lead else ids("\n" + text)[len(ids("\n")) :]
        for text, first in pieces
    ]


def encoder(template: str, tokenizer: Any, loss_on: Any) -> Encoder:
    tokenizer.chat_template = TEMPLATES.get(template)
    mode = template if template in PLAIN else "chat"
    return Encoder(Template(tokenizer, mode=mode, seed=1), loss_on, 60, 40, pack=False, layout=StepLayout())


def outcome(records: list[Record], by: Encoder) -> tuple[list[bytes], list[tuple[Any, ...]], dict[str, int], list[str]]:
    items = encode(records, by)
    rows = [(i.row, *(ids.tolist() for ids in i.sequences()), *(u for _, _, u in i.token_uses())) for i in items]
    extra = [repr(getattr(item, "unrelated", None)) for item in items]
    return [item.signature() for item in items], [*zip(rows, extra, strict=True)], dict(by.cuts), [*by.template.notes]


@pytest.mark.parametrize("kind", RECORDS)
@pytest.mark.parametrize("template", [*TEMPLATES, *PLAIN])
def test_batches_of_rows_equal_single_rows(template, kind, monkeypatch):
    tokenizers = [byte_tokenizer, metaspace_tokenizer] if template in PREFIXES else [byte_tokenizer]
    weights = kind == "demonstration"
    for tokenizer in tokenizers:
        for loss_on in ("completion", "assistant") if weights else ("completion",):
            records = RECORDS[kind]
            if template == "reasoning removed":  # its answers of weight 0 cannot be told apart from others
                records = [r for r in records if not isinstance(r, Demonstration) or all(m.in_loss for m in r.messages)]
            monkeypatch.setattr(tokenizing, "MANY", 1)
            fast = outcome(records, encoder(template, tokenizer(), loss_on))
            with monkeypatch.context() as patch:
                patch.setattr(tokenizing, "CHUNK", 1)
                patch.setattr(tokenizing, "MANY", 10**9)
                patch.setattr(PieceTokenizer, "__call__", one_by_one)
                patch.setattr(Skeletons, "fill", lambda *_args, **_kwargs: None)
                patch.setattr(Skeletons, "answered", lambda *_args: None)
                slow = outcome(records, encoder(template, tokenizer(), loss_on))
            assert fast == slow
