"""Chat templates and masks: the loss covers the answer up to and including its end token."""

from __future__ import annotations

import random
from datetime import datetime

import pytest
import torch
from transformers import AutoTokenizer

from postrain.data.chat import INSTRUCTION, Template
from postrain.data.conversation import Message, transcript, with_prefill
from postrain.data.rendering import clock_at
from postrain.errors import ConfigError
from tests.data.helpers import MARKED, UNMARKED, byte_tokenizer, chat, metaspace_tokenizer

PIECES = ["The answer", " is", " 4", ".", "\n", "\n\n", " ", "  ", "é", "2 + 2", "###", "?", "Once"]


def texts(rng: random.Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, 8)))


@pytest.mark.parametrize("mode", ["chat", "plain", "random", "bot", *INSTRUCTION])
@pytest.mark.parametrize("pad", ["<|pad|>", "<|end|>"])
@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompt_and_answer_tokens_concatenate_to_the_conversation(mode, pad, adds_bos):
    tokenizer = byte_tokenizer(template=MARKED, pad=pad, adds_bos=adds_bos)
    template = Template(tokenizer, mode=mode, seed=1)
    rng = random.Random(0)
    for row in range(40):
        prompt, answer = chat(texts(rng)), texts(rng)
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
    talk = chat("What is 2 + 2?", "4", "Once?", "The answer is 4.\n")
    marked, unmarked = (Template(byte_tokenizer(template=source)) for source in (MARKED, UNMARKED))
    ids, is_assistant, _ = marked.encode(talk)
    other_ids, other_speaks, _ = unmarked.encode(talk)
    assert ids.equal(other_ids)
    assert decoded(marked, ids[is_assistant]) == "4<|stop|>The answer is 4.\n<|stop|>"
    assert other_speaks.equal(is_assistant)


def decoded(template: Template, ids: torch.Tensor) -> str:
    return template.tokenizer.decode(ids.tolist())


def test_end_of_turn_after_the_generation_mark_is_supervised():
    late = MARKED.replace(
        "{{ m.content + '<|stop|>' }}{% endgeneration %}", "{{ m.content }}{% endgeneration %}{{ '<|stop|>' }}"
    )
    template = Template(byte_tokenizer(template=late))
    ids, is_assistant, _ = template.encode(chat("What?", "4", "Once?", "4."))
    assert template.tokenizer.decode(ids[is_assistant]) == "4<|stop|>4.<|stop|>"


def test_stop_ids_are_eos_end_of_turn_and_those_of_the_model():
    tokenizer = byte_tokenizer(template=MARKED)
    eos, stop = (tokenizer.get_vocab()[token] for token in ("<|end|>", "<|stop|>"))
    assert Template(tokenizer).stop_ids == tuple(sorted({eos, stop}))
    assert Template(tokenizer, eos_ids=[77]).stop_ids == tuple(sorted({eos, stop, 77}))
    assert Template(tokenizer, mode="plain").stop_ids == (eos,)


def test_template_without_an_end_token_gets_eos():
    endless = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    template = Template(byte_tokenizer(template=endless))
    _, after = template.encode_completion(chat("a"), "b")
    assert int(after[-1]) == template.tokenizer.eos_token_id


# What reasoning models' templates do: history loses its thinking, and the generation prompt opens it.
STRIPPING = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] + '<|stop|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OPENING = STRIPPING.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|><think>\n' }}")
THOUGHT = "<think>\nhm\n</think>\n\nok"


@pytest.mark.parametrize(
    ("source", "answer", "learned", "noted"),
    [
        (UNMARKED, THOUGHT, THOUGHT, False),
        (STRIPPING, THOUGHT, THOUGHT, True),
        (STRIPPING, "ok", "ok", False),
        # The opening that the generation prompt contains is not repeated.
        (OPENING, THOUGHT, "hm\n</think>\n\nok", True),
        (OPENING, "<think>hm</think>ok", "hm</think>ok", True),
        (OPENING, "ok", "ok", True),
        # The template trims the answer; the result still continues its prompt, so this needs no note.
        (UNMARKED.replace("m.content", "(m.content | trim)"), " ok ", "ok", False),
    ],
)
def test_supervised_answer_matches_what_the_model_samples(source, answer, learned, noted):
    template = Template(byte_tokenizer(template=source))
    before, after = template.encode_completion(chat("a"), answer)
    assert before.equal(template.encode_prompt(chat("a")))
    assert decoded(template, after) == learned + "<|stop|>"
    assert bool(template.notes) == noted
    ids, is_assistant, _ = template.encode(chat("a", answer))
    assert ids.equal(torch.cat([before, after]))
    assert decoded(template, ids[is_assistant]) == learned + "<|stop|>"


def test_earlier_answers_rewritten_by_the_template_are_unsupervised():
    template = Template(byte_tokenizer(template=STRIPPING))
    ids, is_assistant, _ = template.encode(chat("a", THOUGHT, "b", "c", "d", "e"))
    assert decoded(template, ids).startswith("<|user|>a<|stop|>\n<|assistant|>\n\nok<|stop|>\n<|user|>b<|stop|>")
    assert decoded(template, ids[is_assistant]) == "c<|stop|>e<|stop|>"
    assert any("rewrites earlier answers" in note for note in template.notes)


def test_template_that_omits_the_answer_is_an_error_with_the_row():
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"row 7: the chat template leaves out the assistant's message; use"):
        Template(byte_tokenizer(template=silent)).encode_completion(chat("a"), "b", row=7)


@pytest.mark.parametrize(
    ("tail", "learned"),
    [
        ("<|stop|>\n", "b<|stop|>"),
        ("\n<|stop|>", "b\n<|stop|>"),
        # Sampling stops at the first end token, so the text after it is unsupervised.
        ("<|stop|>\n<|end|>", "b<|stop|>"),
        # Text after a turn is not part of the answer, which ends with the tokenizer's end token.
        ("[/turn]\n", "b<|end|>"),
    ],
)
def test_answer_ends_with_the_first_end_token_after_it(tail, learned):
    source = "{% for m in messages %}{{ m.role + ':' + m.content }}TAIL{% endfor %}".replace("TAIL", tail)
    source += "{% if add_generation_prompt %}assistant:{% endif %}"
    template = Template(byte_tokenizer(template=source))
    _, after = template.encode_completion(chat("a"), "b")
    assert decoded(template, after) == learned
    ids, is_assistant, _ = template.encode(chat("a", "b", "a", "b"))
    first = learned.removesuffix("<|end|>")
    assert decoded(template, ids[is_assistant]) == first + learned
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


TALK = "\n\nHuman: Hi\n\nAssistant:  Of course!\n\nHuman: How?\n\nAssistant:"


def test_transcript_in_the_plain_template_keeps_its_text():
    tokenizer = byte_tokenizer()
    template = Template(tokenizer)
    for prompt, answer, learned in (
        (TALK, "Well", " Well<|end|>"),
        (TALK, " Well", " Well<|end|>"),
        (TALK + " We", "ll", "ll<|end|>"),
    ):
        before, after = template.encode_completion(transcript(prompt), answer)
        assert decoded(template, before) == prompt
        assert before.equal(template.encode_prompt(transcript(prompt)))
        assert decoded(template, after) == learned
        ids, is_assistant, _ = template.encode((*transcript(prompt), Message("assistant", answer)))
        assert decoded(template, ids) == prompt + learned
        assert int(is_assistant.sum()) == len(after)


def test_transcript_in_a_chat_template_becomes_turns():
    template = Template(byte_tokenizer(template=UNMARKED))
    expected = "<|user|>Hi<|stop|>\n<|assistant|>Of course!<|stop|>\n<|user|>How?<|stop|>\n<|assistant|>"
    assert decoded(template, template.encode_prompt(transcript(TALK))) == expected
    assert decoded(template, template.encode_prompt(transcript(TALK + " We"))) == expected + "We"


@pytest.mark.parametrize(
    ("named", "mode", "default"),
    [
        ({"default": UNMARKED, "tool_use": STRIPPING}, "auto", UNMARKED),
        ({"default": UNMARKED, "tool_use": STRIPPING}, "chat", UNMARKED),
        ({"default": UNMARKED, "tool_use": STRIPPING}, "tool_use", STRIPPING),
        ({"rag": UNMARKED, "tool_use": STRIPPING}, "rag", UNMARKED),
        ({"default": UNMARKED, "tool_use": STRIPPING}, "random", UNMARKED),
    ],
)
def test_default_or_named_template_of_several_is_used_and_all_are_kept(named, mode, default, tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = dict(named)
    template = Template(tokenizer, mode=mode)
    assert template.name == ("random" if mode == "random" else "chat")
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.chat_template == {**named, "default": default}
    if mode != "random":
        theirs = again.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True)
        assert template.encode_prompt(chat("a")).tolist() == theirs["input_ids"]


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("auto", r"several chat templates \(rag, tool_use\) and none is named default; choose one with data.template="),
        ("chat", r"several chat templates \(rag, tool_use\) and none is named default"),
        (
            "tools",
            r"data.template=tools: expected one of auto, chat, plain, .*; the tokenizer's templates: rag, tool_use",
        ),
    ],
)
def test_several_templates_without_a_default_are_refused_with_their_names(mode, message):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = {"rag": UNMARKED, "tool_use": STRIPPING}
    with pytest.raises(ConfigError, match=message):
        Template(tokenizer, mode=mode)


def test_tokenizer_with_the_plain_template_stays_plain():
    tokenizer = byte_tokenizer(adds_bos=True)
    Template(tokenizer, mode="plain")
    assert Template(tokenizer).name == "plain"


def test_template_date_is_the_current_date():
    dated = "{{ strftime_now('%d %b %Y %H:%M') }}\n" + UNMARKED
    template = Template(byte_tokenizer(template=dated))
    with clock_at(datetime(2024, 2, 29, 23, 59)):
        first = template.encode_prompt(chat("a"))
    with clock_at(datetime(2024, 2, 29, 23, 59)):
        assert first.equal(template.encode_prompt(chat("a")))
    assert decoded(template, first).startswith("29 Feb 2024 23:59\n<|user|>a")
    assert not decoded(template, template.encode_prompt(chat("a"))).startswith("29 Feb 2024")


def test_error_raised_by_a_template_names_the_row():
    picky = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + UNMARKED
    template = Template(byte_tokenizer(template=picky))
    with pytest.raises(ConfigError, match=r"row 3: the chat template refuses the conversation: no system"):
        template.encode_prompt((Message("system", "x"), Message("user", "y")), row=3)


def test_parts_of_a_row_are_encoded_without_extra_spaces():
    template = Template(metaspace_tokenizer(template=MARKED))
    before, after = template.encode_completion(chat("what is"), "the answer")
    assert template.tokenizer.convert_ids_to_tokens(after[:3].tolist()) == ["t", "h", "e"]
    ids, is_assistant, _ = template.encode(chat("what is", "the answer"))
    assert ids.equal(torch.cat([before, after]))
    assert int(is_assistant.sum()) == len(after)


def test_random_template_depends_on_seed_and_row_only():
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
def test_tokenizer_keeps_the_template_that_was_used(mode, own, name, kept):
    tokenizer = byte_tokenizer(template=own)
    template = Template(tokenizer, mode=mode)
    assert template.name == name
    assert (tokenizer.chat_template == own) == kept
    if name != "random":
        messages = [{"role": "user", "content": "What is 2 + 2?"}]
        plain = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert plain == template.encode_prompt(chat("What is 2 + 2?")).tolist()


def test_random_mode_saves_alpaca_if_the_tokenizer_has_no_template():
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


@pytest.mark.parametrize("content", ["m.content[0]['text']", "(m.content | map(attribute='text') | join)"])
def test_template_that_requires_content_parts_is_refused(content):
    parts = UNMARKED.replace("m.content", content)
    with pytest.raises(ConfigError, match=r"takes content as a list of parts alone .*; use data\.template=plain"):
        Template(byte_tokenizer(template=parts))
