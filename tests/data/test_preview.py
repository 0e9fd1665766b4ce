"""The audit's preview: spans of text inside and outside the loss."""

from __future__ import annotations

import torch

from postrain.data.chat import Template
from postrain.data.encode import EncodedRow
from postrain.data.kinds.preference import EncodedPair
from postrain.data.kinds.prompt import EncodedPrompt
from postrain.data.preview import MAX_PREVIEW_CHARACTERS, PreviewRow, Stretch, preview
from tests.data.helpers import byte_tokenizer

TEMPLATE = Template(byte_tokenizer(pad="<|end|>"), mode="plain")


def row(text: str, supervised: int, number: int = 1) -> EncodedRow:
    """An encoded text whose last `supervised` tokens are supervised."""
    ids = TEMPLATE.tokenizer(text, add_special_tokens=False)["input_ids"]
    return EncodedRow(number, torch.tensor(ids), torch.arange(len(ids)) >= len(ids) - supervised)


def test_preview_decodes_runs_of_equal_masks_together() -> None:
    # é is two bytes, hence two tokens: decoded separately they are not a letter.
    assert list(preview([row("xyé", 2)], TEMPLATE)) == [
        PreviewRow(1, "", (Stretch("xy", "context"), Stretch("é", "loss")))
    ]


def test_preview_of_a_pair_has_two_rows_with_roles() -> None:
    pair = EncodedPair(5, row("ab", 1, 5), row("ac", 1, 5), 0.0)
    found = list(preview([pair], TEMPLATE))
    assert [(one.row, one.role, one.stretches[1].text) for one in found] == [(5, "chosen", "b"), (5, "rejected", "c")]


def test_preview_shows_prompt_tokens_outside_the_loss() -> None:
    prompt = EncodedPrompt(2, row("ab", 0).ids, "ab", {})
    assert list(preview([prompt], TEMPLATE)) == [PreviewRow(2, "", (Stretch("ab", "context"),))]


def test_preview_shortens_the_middle_of_each_long_span() -> None:
    whole = PreviewRow(0, "", (Stretch("a" * 5000 + "b", "context"), Stretch("c", "loss")))
    kept = whole.shortened().stretches
    assert len(kept[0].text) == MAX_PREVIEW_CHARACTERS + len(" […] ")
    assert kept[0].text.endswith("ab")
    assert kept[1] == whole.stretches[1]
