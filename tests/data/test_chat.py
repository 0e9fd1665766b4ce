"""Chat templates and loss masks: the loss covers the answer up to and including its end token."""

from __future__ import annotations

import random

import pytest
import torch

from postrain.data.chat import INSTRUCTION, Template
from postrain.data.conversation import Message, transcript, with_prefill
from postrain.errors import ConfigError
from tests.data.helpers import MARKED, STRIPPING, UNMARKED, byte_tokenizer, chat, decoded, metaspace_tokenizer

PIECES = ["The answer", " is", " 4", ".", "\n", "\n\n", " ", "  ", "é", "2 + 2", "###", "?", "Once"]


def random_text(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 8)))


@pytest.mark.parametrize("mode", ["chat", "plain", "random", "bot", *INSTRUCTION])
@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompt_and_answer_tokens_concatenate_to_the_conversation(mode, pad, adds_bos):
    tokenizer = byte_tokenizer(template=MARKED, pad=pad, adds_bos=adds_bos)
    template = Template(tokenizer, mode=mode, seed=1)
    rng = random.Random(0)
    for row in range(40):
        prompt, answer = chat(random_text(rng)), random_text(rng)
        before, after = template.encode_completion(prompt, answer, row=row)
        assert before.equal(template.encode_prompt(prompt, row=row))
        assert int(after[-1]) in template.stop_ids
        assert not set(after[:-1].tolist()) & set(template.stop_ids)
        text = tokenizer.decode(after[:-1], clean_up_tokenization_spaces=False)
        assert text in (answer, " " + answer)
        assert before.tolist().count(tokenizer.bos_token_id) == (adds_bos and mode != "chat")
        ids, is_assistant, _ = template.encode((*prompt, Message("assistant", answer)), row=row)
        assert ids.equal(torch.cat([before, after]))
        assert is_assistant.tolist() == [False] * len(before) + [True] * len(after)


def test_trailing_space_of_a_prompt_does_not_shift_the_mask():
    template = Template(byte_tokenizer(), mode="plain")
    bare, after = template.encode_completion(chat("The answer is"), "4")
    spaced, after_space = template.encode_completion(chat("The answer is "), "4")
    assert after.equal(after_space)
    assert len(spaced) > len(bare)


def test_masks_with_and_without_generation_marks_are_equal_and_exclude_the_newline():
    conversation = chat("What is 2 + 2?", "4", "Once?", "The answer is 4.\n")
    marked, unmarked = (Template(byte_tokenizer(template=source)) for source in (MARKED, UNMARKED))
    ids, is_assistant, _ = marked.encode(conversation)
    other_ids, other_is_assistant, _ = unmarked.encode(conversation)
    assert ids.equal(other_ids)
    assert decoded(marked, ids[is_assistant]) == "4<|stop|>The answer is 4.\n<|stop|>"
    assert other_is_assistant.equal(is_assistant)


def test_end_of_turn_after_the_generation_mark_is_supervised():
    late = MARKED.replace(
        "{{ m.content + '<|stop|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}{{ '<|stop|>' }}"
    )
    template = Template(byte_tokenizer(template=late))
    ids, is_assistant, _ = template.encode(chat("What?", "4", "Once?", "4."))
    assert template.tokenizer.decode(ids[is_assistant]) == "4<|stop|>4.<|stop|>"


def test_template_without_an_end_token_gets_eos():
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    template = Template(byte_tokenizer(template=endless))
    _, after = template.encode_completion(chat("a"), "b")
    assert int(after[-1]) == template.tokenizer.eos_token_id


# The template of some reasoning models: the generation prompt opens the reasoning.
OPENING = STRIPPING.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}")
REASONING = "<think>\nhm\n</think>\n\nok"


@pytest.mark.parametrize(
    ("source", "answer", "supervised_text", "has_note"),
    [
        (UNMARKED, REASONING, REASONING, False),
        (STRIPPING, REASONING, REASONING, True),
        (STRIPPING, "ok", "ok", False),
        # The opening that the generation prompt contains is not repeated.
        (OPENING, REASONING, "hm\n</think>\n\nok", True),
        (OPENING, "<think>hm</think>ok", "hm</think>ok", True),
        (OPENING, "ok", "ok", True),
        # The template trims the answer; the result still continues its prompt, so there is no note.
        (UNMARKED.replace("m.content", "(m.content | trim)"), " ok ", "ok", False),
    ],
)
def test_supervised_answer_matches_what_the_model_samples(source, answer, supervised_text, has_note):
    template = Template(byte_tokenizer(template=source))
    before, after = template.encode_completion(chat("a"), answer)
    assert before.equal(template.encode_prompt(chat("a")))
    assert decoded(template, after) == supervised_text + "<|stop|>"
    assert bool(template.notes) == has_note
    ids, is_assistant, _ = template.encode(chat("a", answer))
    assert ids.equal(torch.cat([before, after]))
    assert decoded(template, ids[is_assistant]) == supervised_text + "<|stop|>"


@pytest.mark.parametrize(
    ("mode", "prompt", "answer", "joined"),
    [("plain", "a", "b", True), ("plain", "a\n", "b", False), ("plain", "a", " b", False), ("alpaca", "a", "b", False)],
)
def test_answer_directly_after_a_plain_prompt_is_noted(mode, prompt, answer, joined):
    template = Template(byte_tokenizer(), mode=mode)
    template.encode_completion(chat(prompt), answer)
    assert any("directly after" in note for note in template.notes) == joined


def test_earlier_answers_rewritten_by_the_template_are_unsupervised():
    template = Template(byte_tokenizer(template=STRIPPING))
    ids, is_assistant, _ = template.encode(chat("a", REASONING, "b", "c", "d", "e"))
    assert decoded(template, ids).startswith("<|user|>a<|stop|>\n<|assistant|>\n\nok<|stop|>\n<|user|>b<|stop|>")
    assert decoded(template, ids[is_assistant]) == "c<|stop|>e<|stop|>"
    assert any("rewrites earlier answers" in note for note in template.notes)


@pytest.mark.parametrize(
    ("tail", "supervised_text"),
    [
        ("<|stop|>\n", "b<|stop|>"),
        ("\n<|stop|>", "b\n<|stop|>"),
        # Sampling stops at the first end token, so the text after it is unsupervised.
        ("<|stop|>\n<|end|>", "b<|stop|>"),
        # Text after a turn is not part of the answer, which ends with the tokenizer's end token.
        ("[/turn]\n", "b<|end|>"),
    ],
)
def test_answer_ends_with_the_first_end_token_after_it(tail, supervised_text):
    source = "{% for m in messages %}{{ m.role + ':' + m.content }}TAIL{% endfor %}".replace("TAIL", tail)
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    template = Template(byte_tokenizer(template=source))
    _, after = template.encode_completion(chat("a"), "b")
    assert decoded(template, after) == supervised_text
    ids, is_assistant, _ = template.encode(chat("a", "b", "a", "b"))
    first = supervised_text.removesuffix("<|end|>")
    assert decoded(template, ids[is_assistant]) == first + supervised_text
    # Text after a turn becomes context of the next turn.
    assert decoded(template, ids).startswith(f"user:a{tail}assistant:b{tail}user:a{tail}assistant:b")


@pytest.mark.parametrize(
    "mark",
    [
        "{% generation %}{{ m.content + '<|stop|>\n' }}{% endgeneration %}",
        "{% generation %}{{ m.content }}{% endgeneration %}{% generation %}{{ '<|stop|>\n' }}{% endgeneration %}",
    ],
)
def test_newline_inside_a_generation_mark_is_unsupervised(mark):
    source = "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}MARK{% else %}{{ m.content }}"
    source = source.replace("MARK", mark) + "{% endif %}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    template = Template(byte_tokenizer(template=source))
    ids, is_assistant, _ = template.encode(chat("a", "b", "c", "d"))
    assert decoded(template, ids) == "user:aassistant:b<|stop|>\nuser:cassistant:d<|stop|>"
    assert decoded(template, ids[is_assistant]) == "b<|stop|>d<|stop|>"


@pytest.mark.parametrize("mode", ["chat", "plain", "vicuna"])
def test_prefill_at_the_end_of_a_prompt_is_continued(mode):
    tokenizer = byte_tokenizer(template=UNMARKED)
    template = Template(tokenizer, mode=mode)
    prompt = with_prefill(chat("What is 2 + 2?", "The answer"))
    messages = [{"role": turn.role, "content": turn.content} for turn in prompt]
    before, after = template.encode_completion(prompt, " is 4.")
    theirs = tokenizer.apply_chat_template(messages, continue_final_message=True, return_dict=False)
    assert before.tolist() == theirs
    assert before.equal(template.encode_prompt(prompt))
    assert decoded(template, after) == " is 4." + ("<|stop|>" if mode == "chat" else "<|end|>")
    ids, is_assistant, _ = template.encode((*prompt, Message("assistant", " is 4.")))
    assert ids.equal(torch.cat([before, after]))
    assert int(is_assistant.sum()) == len(after)


def test_assistant_message_without_prefill_is_a_separate_turn():
    template = Template(byte_tokenizer(template=UNMARKED))
    ids, _, _ = template.encode((*chat("a", "b"), Message("assistant", "c")))
    assert decoded(template, ids).endswith("<|assistant|>b<|stop|>\n<|assistant|>c<|stop|>")


def test_prefill_omitted_by_the_template_is_a_one_line_error():
    template = Template(byte_tokenizer(template=STRIPPING))
    with pytest.raises(
        ConfigError, match=r"row 2: the chat template refuses .* the final message does not appear"
    ) as e:
        template.encode_prompt(with_prefill(chat("a", "<think>\nhm</think>")), row=2)
    assert "\n" not in str(e.value)


TRANSCRIPT = "\n\nHuman: Hi\n\nAssistant:  Of course!\n\nHuman: How?\n\nAssistant:"


def test_transcript_in_the_plain_template_keeps_its_text():
    tokenizer = byte_tokenizer()
    template = Template(tokenizer)
    for prompt, answer, supervised_text in (
        (TRANSCRIPT, "Well", " Well<|end|>"),
        (TRANSCRIPT, " Well", " Well<|end|>"),
        (TRANSCRIPT + " We", "ll", "ll<|end|>"),
    ):
        before, after = template.encode_completion(transcript(prompt), answer)
        assert decoded(template, before) == prompt
        assert before.equal(template.encode_prompt(transcript(prompt)))
        assert decoded(template, after) == supervised_text
        ids, is_assistant, _ = template.encode((*transcript(prompt), Message("assistant", answer)))
        assert decoded(template, ids) == prompt + supervised_text
        assert int(is_assistant.sum()) == len(after)


def test_transcript_in_a_chat_template_becomes_turns():
    template = Template(byte_tokenizer(template=UNMARKED))
    expected = "<|user|>Hi<|stop|>\n<|assistant|>Of course!<|stop|>\n<|user|>How?<|stop|>\n<|assistant|>"
    assert decoded(template, template.encode_prompt(transcript(TRANSCRIPT))) == expected
    assert decoded(template, template.encode_prompt(transcript(TRANSCRIPT + " We"))) == expected + "We"


def test_parts_of_a_row_are_encoded_without_extra_spaces():
    template = Template(metaspace_tokenizer(template=MARKED))
    before, after = template.encode_completion(chat("what is"), "the answer")
    assert template.tokenizer.convert_ids_to_tokens(after[:3].tolist()) == ["t", "h", "e"]
    ids, is_assistant, _ = template.encode(chat("what is", "the answer"))
    assert ids.equal(torch.cat([before, after]))
    assert int(is_assistant.sum()) == len(after)


def test_decoding_drops_special_tokens_and_keeps_a_plain_texts_spaces():
    tokenizer = byte_tokenizer(template=MARKED)
    ids = tokenizer(" The answer is<|stop|>", add_special_tokens=False)["input_ids"]
    assert Template(tokenizer, mode="plain").decode(ids) == " The answer is"
    assert Template(tokenizer, mode="vicuna").decode(ids) == "The answer is"
