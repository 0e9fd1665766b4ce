"""Templates and masks: what is learned starts exactly where the model will write, and always ends with the end."""

from __future__ import annotations

import random

import pytest
import torch

from postrain.data.chat import INSTRUCTION, Template
from postrain.data.records import Message
from postrain.types import ConfigError
from tests.data.helpers import MARKED, UNMARKED, byte_tokenizer, chat, metaspace_tokenizer

PIECES = ["The answer", " is", " 4", ".", "\n", "\n\n", " ", "  ", "é", "2 + 2", "###", "?", "Once"]


def texts(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 8)))


@pytest.mark.parametrize("mode", ["chat", "plain", "random", "bot", *INSTRUCTION])
@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompts_and_answers_meet_where_the_model_starts_to_write(mode, pad, adds_bos):
    tokenizer = byte_tokenizer(template=MARKED, pad=pad, adds_bos=adds_bos)
    template = Template(tokenizer, mode=mode, seed=1)
    rng = random.Random(0)
    for row in range(40):
        prompt, answer = chat(texts(rng)), texts(rng)
        before, after = template.encode_completion(prompt, answer, row=row)
        assert before.equal(template.encode_prompt(prompt, row=row))
        assert int(after[-1]) in template.stop_ids
        assert not set(after[:-1].tolist()) & set(template.stop_ids)
        said = tokenizer.decode(after[:-1], clean_up_tokenization_spaces=False)
        assert said in (answer, " " + answer)
        assert before.tolist().count(tokenizer.bos_token_id) == (adds_bos and mode != "chat")
        ids, speaks, _ = template.encode((*prompt, Message("assistant", answer)), row=row)
        assert ids.equal(torch.cat([before, after]))
        assert speaks.tolist() == [False] * len(before) + [True] * len(after)


def test_a_space_at_the_end_of_a_prompt_moves_no_mask():
    template = Template(byte_tokenizer(), mode="plain")
    bare, after = template.encode_completion(chat("The answer is"), "4")
    spaced, after_space = template.encode_completion(chat("The answer is "), "4")
    assert after.equal(after_space)
    assert len(spaced) > len(bare)


def test_masks_without_generation_marks_are_those_with_them():
    talk = chat("What is 2 + 2?", "4", "Once?", "The answer is 4.\n")
    marked, unmarked = (Template(byte_tokenizer(template=source)) for source in (MARKED, UNMARKED))
    ids, speaks, _ = marked.encode(talk)
    other_ids, other_speaks, _ = unmarked.encode(talk)
    assert ids.equal(other_ids)
    # Without marks an answer reaches to the end of what the template writes for it, its line break included.
    assert decoded(marked, ids[speaks]) == "4<|stop|>The answer is 4.\n<|stop|>"
    assert decoded(marked, ids[other_speaks]) == "4<|stop|>\nThe answer is 4.\n<|stop|>"


def decoded(template: Template, ids: torch.Tensor) -> str:
    return template.tokenizer.decode(ids.tolist())


def test_an_end_of_turn_after_the_mark_is_learned():
    late = MARKED.replace(
        "{{ m.content + '<|stop|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}{{ '<|stop|>' }}"
    )
    template = Template(byte_tokenizer(template=late))
    ids, speaks, _ = template.encode(chat("What?", "4", "Once?", "4."))
    assert template.tokenizer.decode(ids[speaks]) == "4<|stop|>4.<|stop|>"


def test_stop_ids_are_eos_end_of_turn_and_what_the_model_says():
    tokenizer = byte_tokenizer(template=MARKED)
    eos, stop = (tokenizer.get_vocab()[token] for token in ("<|end|>", "<|stop|>"))
    assert Template(tokenizer).stop_ids == tuple(sorted({eos, stop}))
    assert Template(tokenizer, eos_ids=[77]).stop_ids == tuple(sorted({eos, stop, 77}))
    assert Template(tokenizer, mode="plain").stop_ids == (eos,)


def test_a_template_that_writes_no_end_gets_eos():
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    template = Template(byte_tokenizer(template=endless))
    _, after = template.encode_completion(chat("a"), "b")
    assert int(after[-1]) == template.tokenizer.eos_token_id


def test_a_template_that_rewrites_the_prompt_is_refused_with_the_row():
    rewriting = "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    template = Template(byte_tokenizer(template=None), mode="plain")
    template._sources = (rewriting,)
    with pytest.raises(ConfigError, match=r"row 7: .*writes the prompt differently.*data\.template=plain"):
        template.encode_completion(chat("a"), "b", row=7)
    with pytest.raises(ConfigError, match=r"row 7: .*rewrites earlier turns"):
        template.encode(chat("a", "b"), row=7)


def test_a_template_that_refuses_a_conversation_names_the_row():
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + UNMARKED
    template = Template(byte_tokenizer(template=picky))
    with pytest.raises(ConfigError, match=r"row 3: the chat template refuses the conversation: no system"):
        template.encode_prompt((Message("system", "x"), Message("user", "y")), row=3)


def test_pieces_of_a_row_get_no_spaces_of_their_own():
    template = Template(metaspace_tokenizer(template=MARKED))
    before, after = template.encode_completion(chat("what is"), "the answer")
    assert template.tokenizer.convert_ids_to_tokens(after[:3].tolist()) == ["t", "h", "e"]
    ids, speaks, _ = template.encode(chat("what is", "the answer"))
    assert ids.equal(torch.cat([before, after]))
    assert int(speaks.sum()) == len(after)


def test_random_draws_by_seed_and_row_alone():
    one, again, other = (Template(byte_tokenizer(), mode="random", seed=seed) for seed in (1, 1, 2))
    drawn = [one.source(row) for row in range(60)]
    assert drawn == [again.source(row) for row in range(60)]
    assert drawn != [other.source(row) for row in range(60)]
    assert len(set(drawn)) == 5


@pytest.mark.parametrize(
    ("mode", "own", "name", "kept"),
    [
        ("auto", MARKED, "chat", True),
        ("auto", None, "plain", False),
        ("chat", MARKED, "chat", True),
        ("plain", MARKED, "plain", False),
        ("random", MARKED, "random", True),
    ],
)
def test_the_tokenizer_carries_the_template_that_was_used(mode, own, name, kept):
    tokenizer = byte_tokenizer(template=own)
    template = Template(tokenizer, mode=mode)
    assert template.name == name
    assert (tokenizer.chat_template == own) == kept
    if name != "random":
        messages = [{"role": "user", "content": "What is 2 + 2?"}]
        plain = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert plain == template.encode_prompt(chat("What is 2 + 2?")).tolist()


def test_random_leaves_alpaca_where_the_tokenizer_has_nothing():
    tokenizer = byte_tokenizer()
    Template(tokenizer, mode="random")
    assert "### Instruction" in tokenizer.chat_template


def test_chat_without_a_template_and_a_tokenizer_without_an_end_are_refused():
    with pytest.raises(ConfigError, match=r"data\.template=chat: the tokenizer has no chat template; use plain"):
        Template(byte_tokenizer(), mode="chat")
    endless = byte_tokenizer()
    endless.eos_token = None
    with pytest.raises(ConfigError, match="no eos_token"):
        Template(endless)


def test_decoding_drops_special_tokens_and_keeps_a_plain_texts_spaces():
    tokenizer = byte_tokenizer(template=MARKED)
    ids = tokenizer(" The answer is<|stop|>", add_special_tokens=False)["input_ids"]
    assert Template(tokenizer, mode="plain").decode(ids) == " The answer is"
    assert Template(tokenizer, mode="vicuna").decode(ids) == "The answer is"
