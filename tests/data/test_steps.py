"""Step chains as tokens: no token spans two steps, and truncation drops whole steps with their labels."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from postrain.data.chat import Template
from postrain.data.conversation import user
from postrain.data.encode import PROMPT_CUT, Encoder, collate
from postrain.data.kinds.steps import LAYOUT_FILE, STEPS_CUT, EncodedSteps, StepLayout, StepRows, Steps
from postrain.data.record_reader import drop_empty
from postrain.data.records import encode
from postrain.errors import ConfigError
from tests.data.helpers import MARKED, UNMARKED, byte_tokenizer, chat, metaspace_tokenizer

LINES = StepLayout(joiner="\n", separator="")
TEMPLATES = {
    "plain": (lambda: Template(byte_tokenizer(), mode="plain")),
    "marked": (lambda: Template(byte_tokenizer(template=MARKED))),
    "trimmed": (lambda: Template(byte_tokenizer(template=UNMARKED.replace("m.content", "(m.content | trim)")))),
    "metaspace": (lambda: Template(metaspace_tokenizer(template=UNMARKED))),
}


def template(name: str = "plain") -> Template:
    return TEMPLATES[name]()


def build_encoder(length: int = 64, layout: StepLayout = LINES) -> Encoder:
    return Encoder(
        template=template(), loss_on="completion", max_length=length, max_prompt_length=999, pack=False, layout=layout
    )


def record(prompt: str, *steps: str, wrong: int = 99) -> Steps:
    """A chain that is right before step `wrong`."""
    labels = tuple(at < wrong for at in range(len(steps)))
    return Steps(row=1, prompt=chat(prompt), steps=steps, labels=labels)


def step_texts(template: Template, ids: torch.Tensor, mask: torch.Tensor) -> list[str]:
    """The text between consecutive marked tokens."""
    ends = [0, *mask.nonzero().flatten().tolist()]
    return [template.decode_all(ids[a:b].tolist()) for a, b in pairwise(ends)]


@pytest.mark.parametrize("name", sorted(TEMPLATES))
@pytest.mark.parametrize("separator", ["", "\n", "<|stop|>"])
def test_step_mark_follows_its_step(name: str, separator: str) -> None:
    chat_template, layout = template(name), StepLayout(joiner=" ", separator=separator)
    ids, mask = layout.chain(chat_template, user("what is it?"), ("the answer is", "the question", "done")).row()
    first, *rest = step_texts(chat_template, ids, mask)
    # metaspace has no newline token and separates special tokens by spaces
    assert [text.strip() for text in rest] == [f"the question{separator}".strip(), f"done{separator}".strip()]
    assert first.endswith(f"the answer is{separator}")
    assert not mask[0]
    assert int(mask.sum()) == 3


def test_step_border_inside_a_token_merge_is_kept() -> None:
    chat_template = template()
    tokens = chat_template.tokenizer.tokenize
    # The tokenizer writes " answer" as one token; its two halves are separate steps.
    assert len(tokens(" answer")) < len(tokens(" ans")) + len(tokens("wer"))
    ids, mask = StepLayout(joiner="", separator="").chain(chat_template, user("q:"), (" ans", "wer")).row()
    assert step_texts(chat_template, ids, mask) == ["q: ans", "wer"]
    # The mark of the last step is the end token after it.
    assert int(ids[-1]) == chat_template.tokenizer.eos_token_id
    assert bool(mask[-1])


def test_first_joiner_is_stripped_if_the_template_separates_answers() -> None:
    layout = StepLayout(joiner="\n- ", separator="")
    plain, marked = (layout.chain(template(name), user("x"), ("a", "b")) for name in ("plain", "marked"))
    # The plain template needs the whole joiner to separate prompt and answer; a chat template provides the white space.
    assert template().decode_all(plain.steps[0].tolist()) == "\n- a"
    assert template("marked").decode_all(marked.steps[0].tolist()) == "- a"
    assert template("marked").decode_all(marked.steps[1].tolist()) == "\n- b"


def test_steps_beyond_max_length_are_dropped_whole_with_their_labels() -> None:
    # Letters without merges: the prompt is 4 tokens, each step with its joiner 5, the end 1.
    whole = record("zqxk", "jzqx", "kqzj", "xqzk", wrong=1)
    for length, steps in ((20, 3), (19, 2), (15, 2), (14, 1), (10, 1)):
        encoder = build_encoder(length)
        found = encode([whole], encoder)[0]
        assert isinstance(found, EncodedSteps)
        assert found.labels == (True, False, False)[:steps]
        assert int(found.chain.supervised.sum()) == steps
        assert len(found.chain.ids) == 4 + 5 * steps + 1
        assert encoder.cuts == ({STEPS_CUT: 1} if steps < 3 else {})


def test_prompt_is_truncated_to_fit_one_step() -> None:
    encoder = build_encoder(8)
    found = encode([record("zqxk", "jzqx", "kqzj")], encoder)[0]
    assert isinstance(found, EncodedSteps)
    # 8 - 5 for the step - 1 for the end leave two tokens of the prompt.
    assert encoder.template.decode(found.chain.ids[:2]) == "xk"
    assert found.labels == (True,)
    assert encoder.cuts == {PROMPT_CUT: 1, STEPS_CUT: 1}


def test_chain_without_a_step_after_truncation_is_dropped_and_counted() -> None:
    items = encode([record("zqxk", "jzqx"), record("zq", "x")], build_encoder(6))
    dropped: Counter[str] = Counter()
    assert [item.row for item in drop_empty(items, dropped, "x.jsonl")] == [1]
    assert dropped == {"first step too long": 1}
    with pytest.raises(ConfigError, match=r"^x\.jsonl: first step too long, in every row; raise data\.max_length$"):
        tuple(drop_empty(items[:1], dropped, "x.jsonl"))


def test_step_batch_keeps_labels_with_their_rows() -> None:
    batch = collate(encode([record("zq", "x", "j", wrong=0), record("zq", "k")], build_encoder()))
    assert isinstance(batch, StepRows)
    assert [labels.tolist() for labels in batch.labels] == [[False, False], [True]]
    swapped = batch.select([1, 0])
    assert [labels.tolist() for labels in swapped.labels] == [[True], [False, False]]
    assert swapped.rows.ids[0].equal(batch.rows.ids[1])
    # prompt 2 + two steps of 2 + end 1 = 7; prompt 2 + one step of 2 + end 1 = 5
    assert batch.cost() == [7, 5]
    assert batch.row_ids == (1, 1)


def test_step_layout_is_read_from_the_model_folder(tmp_path) -> None:
    assert StepLayout.of_model(tmp_path) is None
    layout = StepLayout(joiner=" ", separator="<|stop|>")
    (tmp_path / LAYOUT_FILE).write_text(layout.to_json())
    assert StepLayout.of_model(tmp_path) == layout
    (tmp_path / LAYOUT_FILE).write_text('{"joiner": " "}')
    with pytest.raises(ConfigError, match=r"steps\.json does not hold a joiner and a separator"):
        StepLayout.of_model(tmp_path)
