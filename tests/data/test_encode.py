"""Truncation, loss masks and packing."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from postrain.data.chat import Template
from postrain.data.encode import ANSWER_CUT, PROMPT_CUT, EncodedRow, Encoder, collate
from postrain.data.kinds.demonstration import Demonstration
from postrain.data.kinds.preference import EncodedPair, Preference
from postrain.data.kinds.prompt import EncodedPrompt, Prompt
from postrain.data.kinds.steps import StepLayout
from postrain.data.kinds.text import TEXT_CUT, Text
from postrain.data.kinds.unpaired_preference import EncodedUnpairedPreference, UnpairedPreference, UnpairedPreferences
from postrain.data.records import encode
from postrain.errors import ConfigError
from tests.data.helpers import MARKED, byte_tokenizer, chat


def build_encoder(max_length: int = 64, **changes) -> Encoder:
    mode = changes.pop("mode", "plain")
    adds_bos = changes.pop("adds_bos", False)
    template = Template(byte_tokenizer(template=MARKED, pad="<|end|>", adds_bos=adds_bos), mode=mode)
    encoder = Encoder(
        template=template,
        loss_on="completion",
        max_length=max_length,
        max_prompt_length=999,
        pack=False,
        layout=StepLayout(joiner="\n", separator=""),
    )
    return replace(encoder, **changes)


def letters(rng: random.Random, low: int, high: int) -> str:
    """Random text of `low` to `high` letters that the tokenizer does not merge: one token per letter."""
    return "".join(rng.choices("xzqkj", k=rng.randint(low, high)))


@pytest.mark.parametrize("adds_bos", [False, True])
def test_truncation_drops_the_left_of_the_prompt_first(adds_bos):
    rng = random.Random(0)
    for _ in range(150):
        length = rng.randint(4, 40)
        prompt, answer = letters(rng, 1, 50), letters(rng, 1, 50)
        encoder = build_encoder(length, adds_bos=adds_bos)
        row = encode([Demonstration(row=1, messages=chat(prompt, answer))], encoder)[0]
        assert isinstance(row, EncodedRow)
        assert len(row.ids) == len(row.supervised) <= length
        assert not row.supervised[0]
        supervised = row.ids[row.supervised].tolist()
        assert row.supervised[-1]
        assert len(supervised) >= 2
        decoded = encoder.template.decode(supervised)
        kept = encoder.template.decode(row.ids[~row.supervised])
        assert prompt.endswith(kept)
        # Complete if the answer, its end and one token of the prompt fit.
        complete = len(answer) + 1 < length
        assert encoder.cuts[ANSWER_CUT] == (not complete)
        assert (supervised[-1] == encoder.template.tokenizer.eos_token_id) == complete
        if complete:
            assert decoded == answer
        else:
            assert answer.startswith(decoded)
            assert len(kept) == min(len(prompt), length // 2 - adds_bos)
        assert encoder.cuts[PROMPT_CUT] == (int((~row.supervised).sum()) < len(prompt) + adds_bos)


def test_truncated_pair_keeps_the_same_prompt_for_both_sides():
    rng = random.Random(1)
    for _ in range(80):
        length = rng.randint(4, 30)
        encoder = build_encoder(length)
        pair = encode(
            [
                Preference(
                    row=1, prompt=chat(letters(rng, 1, 30)), chosen=letters(rng, 1, 40), rejected=letters(rng, 1, 40)
                )
            ],
            encoder,
        )[0]
        assert isinstance(pair, EncodedPair)
        prompts = [side.ids[~side.supervised] for side in (pair.chosen, pair.rejected)]
        assert prompts[0].equal(prompts[1])
        for side in (pair.chosen, pair.rejected):
            assert len(side.ids) <= length
            assert int(side.supervised.sum()) >= 2
        assert encoder.cuts[PROMPT_CUT] <= 1


def test_pair_with_an_answer_longer_than_the_row_keeps_half_of_the_row_for_its_prompt():
    encoder = build_encoder(8)
    (pair,) = encode([Preference(row=1, prompt=chat("zzzzxzqk"), chosen="q", rejected="j" * 20)], encoder)
    assert isinstance(pair, EncodedPair)
    decode = encoder.template.tokenizer.decode
    # The prompt keeps 8 // 2 = 4 tokens on both sides. The chosen side ends, the cut one does not.
    assert (decode(pair.chosen.ids), decode(pair.rejected.ids)) == ("xzqkq<|end|>", "xzqkjjjj")
    assert pair.rejected.supervised.tolist() == [False] * 4 + [True] * 4
    assert encoder.cuts == {PROMPT_CUT: 1, ANSWER_CUT: 1}


def test_shared_prefix_of_both_answers_is_supervised_in_both():
    encoder = build_encoder()
    pair = encode(
        [Preference(row=1, prompt=chat("2 + 2"), chosen="The answer is 4.", rejected="The answer is 5.")], encoder
    )[0]
    assert isinstance(pair, EncodedPair)
    for side, text in ((pair.chosen, "The answer is 4."), (pair.rejected, "The answer is 5.")):
        assert encoder.template.decode(side.ids[side.supervised]) == text


@pytest.mark.parametrize(
    ("loss_on", "supervised_text"),
    [
        ("completion", "zz<|stop|>"),
        ("assistant", "xx<|stop|>zz<|stop|>"),
        ("all", "q<|stop|>\n<|assistant|>xx<|stop|>\n<|user|>k<|stop|>\n<|assistant|>zz<|stop|>"),
    ],
)
def test_loss_on_selects_the_supervised_turns(loss_on, supervised_text):
    encoder = build_encoder(mode="chat", loss_on=loss_on)
    row = encode([Demonstration(row=1, messages=chat("q", "xx", "k", "zz"))], encoder)[0]
    assert isinstance(row, EncodedRow)
    assert encoder.template.tokenizer.decode(row.ids[row.supervised]) == supervised_text


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_mask_of_a_truncated_conversation_stays_aligned(loss_on):
    demonstration = Demonstration(row=1, messages=chat("q" * 9, "x" * 9, "k" * 9, "z" * 9))
    whole = encode([demonstration], build_encoder(mode="chat", loss_on=loss_on))[0]
    assert isinstance(whole, EncodedRow)
    for length in range(4, len(whole.ids)):
        row = encode([demonstration], build_encoder(length, mode="chat", loss_on=loss_on))[0]
        assert isinstance(row, EncodedRow)
        assert len(row.ids) == length
        # The last answer is complete from 11 tokens: nine letters, the end of the turn and one token before.
        if length >= 11:
            assert row.ids.equal(whole.ids[-length:])
            assert row.supervised[1:].equal(whole.supervised[-length + 1 :])


def test_answer_without_a_prompt_is_supervised_whole():
    encoder = build_encoder()
    row = encode([Demonstration(row=1, messages=chat("", "xz"))], encoder)[0]
    assert isinstance(row, EncodedRow)
    assert encoder.template.decode(row.ids[row.supervised]) == "xz"
    assert int(row.supervised.sum()) == 3


def test_prompts_are_truncated_to_max_prompt_length():
    encoder = build_encoder(max_prompt_length=5)
    prompt = encode([Prompt(row=1, prompt=chat("xzqkjxz"), columns={"answer": "4"})], encoder)[0]
    assert isinstance(prompt, EncodedPrompt)
    assert encoder.template.decode(prompt.ids) == "qkjxz"
    assert prompt.text == "xzqkjxz"
    assert prompt.columns == {"answer": "4"}
    assert encoder.cuts == {PROMPT_CUT: 1}


def test_unpaired_preference_gets_another_completion_for_the_kl_estimate():
    encoder = build_encoder(6)
    records = [
        UnpairedPreference(row=2, prompt=chat("xzqkj"), completion="z", label=True),
        UnpairedPreference(row=3, prompt=chat("xz"), completion="xxxxx", label=False),
    ]
    first, second = encode(records, encoder)
    assert isinstance(first, EncodedUnpairedPreference)
    assert isinstance(second, EncodedUnpairedPreference)
    decode = encoder.template.tokenizer.decode
    assert (decode(first.answer.ids), decode(second.answer.ids)) == ("zqkjz<|end|>", "xzxxxx")
    assert (decode(first.unrelated.ids), decode(second.unrelated.ids)) == ("qkjxxx", "xzz<|end|>")
    assert (first.label, second.label) == (True, False)
    # The first prompt and the long answer are truncated. The second truncation of the first prompt is not counted.
    assert encoder.cuts == {PROMPT_CUT: 1, ANSWER_CUT: 1}
    batch = collate([first, second])
    assert isinstance(batch, UnpairedPreferences)
    # cost of scoring both: 6 + 6 and 6 + 4
    assert batch.cost() == [12, 10]
    assert batch.row_ids == (2, 3)


def test_unrelated_completion_differs_after_truncation():
    rng = random.Random(3)
    for _ in range(40):
        encoder = build_encoder(rng.randint(4, 12))
        records = [
            UnpairedPreference(
                row=n, prompt=chat(rng.choice("xz")), completion=letters(rng, 1, 9), label=rng.random() < 0.5
            )
            for n in range(rng.randint(2, 9))
        ]
        try:
            items = encode(records, encoder)
        except ConfigError:
            continue
        for item in items:
            assert isinstance(item, EncodedUnpairedPreference)
            own, other = (row.ids[row.supervised].tolist() for row in (item.answer, item.unrelated))
            assert own != other
            assert len(item.unrelated.ids) <= encoder.max_length


def test_empty_prompt_is_refused():
    with pytest.raises(ConfigError, match="row 4: the prompt is empty"):
        encode([Prompt(row=4, prompt=chat(""))], build_encoder())[0]


def test_truncation_keeps_the_bos_token():
    encoder = build_encoder(5, adds_bos=True)
    prompt = encode([Prompt(row=1, prompt=chat("xzqkjxz"))], encoder)[0]
    assert isinstance(prompt, EncodedPrompt)
    assert encoder.template.tokenizer.decode(prompt.ids) == "<|bos|>kjxz"


def test_running_text_is_supervised_whole_and_truncated_on_the_right():
    encoder = build_encoder(5)
    short, long = encode([Text(row=1, text="xzq"), Text(row=2, text="xzqkjxz")], encoder)
    assert isinstance(short, EncodedRow)
    assert isinstance(long, EncodedRow)
    assert encoder.template.tokenizer.decode(short.ids) == "xzq<|end|>"
    assert encoder.template.tokenizer.decode(long.ids) == "xzqkj"
    assert short.supervised.tolist() == [False, True, True, True]
    assert encoder.cuts == {TEXT_CUT: 1}


def test_packed_blocks_are_the_concatenated_documents():
    rng = random.Random(2)
    for _ in range(20):
        length = rng.randint(4, 20)
        texts = [letters(rng, 1, 30) for _ in range(rng.randint(1, 8))]
        encoder = build_encoder(length, pack=True)
        blocks = encode([Text(row=number, text=text) for number, text in enumerate(texts)], encoder)
        rows = [block for block in blocks if isinstance(block, EncodedRow)]
        joined = encoder.template.tokenizer.decode(torch.cat([row.ids for row in rows]))
        whole = "".join(text + "<|end|>" for text in texts)
        # Only a last block of one token, which has no target, may be missing.
        assert joined in (whole, whole.removesuffix("<|end|>"))
        assert all(len(row.ids) == length for row in rows[:-1])
        assert all(row.supervised.tolist() == [False] + [True] * (len(row.ids) - 1) for row in rows)


def test_packing_of_demonstrations_is_refused():
    with pytest.raises(ConfigError, match=r"data\.pack=true is available for running text only"):
        encode([Demonstration(row=1, messages=chat("a", "b"))], build_encoder(pack=True))


def test_single_unpaired_preference_cannot_be_encoded():
    with pytest.raises(ConfigError, match="all completions are the same in a part of 1 unpaired preferences"):
        encode([UnpairedPreference(row=1, prompt=chat("a"), completion="b", label=True)], build_encoder())


def test_truncation_before_a_bos_token_adds_no_second_one():
    encoder = build_encoder(5, adds_bos=True)
    bos = encoder.template.tokenizer.bos_token_id
    # Five are kept: the first token and the last four. If these begin with BOS, it is kept once.
    assert encoder.cut_prompt(torch.tensor([bos, 9, 9, 9, bos, 7, 7, 7])).tolist() == [bos, 7, 7, 7]
    assert encoder.cut_prompt(torch.tensor([bos, 9, 9, 9, 8, 7, 7, 7])).tolist() == [bos, 8, 7, 7, 7]


@pytest.mark.parametrize(
    ("loss_on", "weights", "supervised_text"),
    [
        ("completion", (False, True), "k<|stop|>"),
        ("assistant", (False, True), "k<|stop|>"),
        ("assistant", (True, False), "z<|stop|>"),
        ("assistant", (True, True), "z<|stop|>k<|stop|>"),
        # The first token of a row has no context, so it is unsupervised for every loss_on.
        ("all", (False, True), "x<|stop|>\n<|assistant|>\n<|user|>q<|stop|>\n<|assistant|>k<|stop|>"),
    ],
)
def test_answer_of_weight_zero_is_unsupervised_context(loss_on, weights, supervised_text):
    turns = chat("x", "z", "q", "k")
    answers: dict[int, bool] = dict(zip((1, 3), weights, strict=True))
    conversation = tuple(replace(turn, in_loss=answers.get(index, True)) for index, turn in enumerate(turns))
    encoder = build_encoder(mode="chat", loss_on=loss_on)
    row, whole = (encode([Demonstration(row=1, messages=messages)], encoder)[0] for messages in (conversation, turns))
    assert isinstance(row, EncodedRow)
    assert isinstance(whole, EncodedRow)
    assert row.ids.equal(whole.ids)
    assert encoder.template.tokenizer.decode(row.ids[row.supervised].tolist()) == supervised_text


def test_weight_zero_requires_one_generation_mark_per_answer():
    last_only = "{% for m in messages %}{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}"
    template = Template(byte_tokenizer(template=last_only + "{% else %}{{ m.content }}{% endif %}{% endfor %}"))
    first, zero_weight, *others = chat("x", "z", "q", "k")
    with pytest.raises(ConfigError, match=r"row 4: .* marks 1 spans for 2 answers, so an answer with weight 0"):
        template.encode((first, replace(zero_weight, in_loss=False), *others), row=4)


def test_user_turn_of_weight_zero_is_refused_with_loss_on_all():
    question, answer = chat("x", "z")
    demonstration = Demonstration(row=6, messages=(replace(question, in_loss=False), answer))
    with pytest.raises(
        ConfigError, match=r"row 6: data\.loss_on=all trains on every turn, .*; use data\.loss_on=assistant"
    ):
        encode([demonstration], build_encoder(loss_on="all"))[0]
    assert isinstance(encode([demonstration], build_encoder(loss_on="assistant"))[0], EncodedRow)
