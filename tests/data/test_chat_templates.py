"""Choice of the chat template: `data.template`, the tokenizer's templates, the saved template, and errors."""

from __future__ import annotations

import json
from datetime import datetime
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer, GenerationConfig

from postrain.data.chat import Template
from postrain.data.conversation import Message
from postrain.data.rendering import clock_at
from postrain.errors import ConfigError
from postrain.models.end_tokens import record_end_ids, set_end_ids
from tests.data.helpers import MARKED, STRIPPING, UNMARKED, byte_tokenizer, chat, decoded


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
            "tool",
            r"data.template=tool: expected one of auto, chat, plain, .*; the tokenizer's templates: rag, tool_use",
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


@pytest.mark.parametrize("content", ["m.content[0]['text']", "(m.content | map(attribute='text') | join)"])
def test_template_that_requires_content_parts_is_refused(content):
    parts = UNMARKED.replace("m.content", content)
    with pytest.raises(ConfigError, match=r"accepts content as a list of parts only .*; use data\.template=plain"):
        Template(byte_tokenizer(template=parts))


def test_template_that_omits_the_answer_is_an_error_with_the_row():
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match=r"row 7: the chat template omits the assistant's message; use"):
        Template(byte_tokenizer(template=silent)).encode_completion(chat("a"), "b", row=7)


def test_stop_ids_are_eos_end_of_turn_and_the_special_ones_of_the_generation_config():
    tokenizer = byte_tokenizer(template=MARKED)
    eos, stop, pad = (tokenizer.get_vocab()[token] for token in ("<|end|>", "<|stop|>", "<|pad|>"))
    assert Template(tokenizer).stop_ids == tuple(sorted({eos, stop}))
    set_end_ids(tokenizer, [pad, 77])  # 77 is a letter, so the config is that of another tokenizer
    assert Template(tokenizer).stop_ids == tuple(sorted({eos, stop, pad}))
    assert Template(tokenizer).end_id == stop
    assert Template(tokenizer, mode="plain").stop_ids == tuple(sorted({eos, pad}))


@pytest.mark.parametrize("mode", ["auto", "tools"])
def test_system_message_that_the_template_leaves_out_is_an_error(mode):
    silent = "{% for m in messages if m.role != 'system' %}{{ m.content + '<|stop|>' }}{% endfor %}"
    template = Template(byte_tokenizer(template=silent), mode=mode)
    template.encode_prompt(chat("a"))
    message = r"row 3: the chat template cannot render system messages; write their text into the first message of"
    for encode in (template.encode_prompt, lambda prompt, row: template.encode_completion(prompt, "b", row=row)):
        with pytest.raises(ConfigError, match=message):
            encode((Message("system", "Be kind."), *chat("a")), row=3)


def test_stop_ids_include_the_end_tokens_of_the_generation_config_beside_the_tokenizer(tmp_path):
    """A message that ends with another of them, such as a tool call, ends there; the EOS token is not added."""
    tokenizer = byte_tokenizer(
        template="{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function | tojson }}{% endfor %}{{ '<|call|>' if m.tool_calls else '<|stop|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]}, replace_extra_special_tokens=False)
    call = tokenizer.get_vocab()["<|call|>"]
    answer = Message("assistant", "", tool_calls=({"name": "f", "arguments": {}},))
    assert Template(tokenizer).encode_completion(chat("a"), answer)[1].tolist()[-2:] == [call, tokenizer.eos_token_id]
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id, call]}))
    template = Template(AutoTokenizer.from_pretrained(tmp_path))
    assert call in template.stop_ids
    assert template.encode_completion(chat("a"), answer)[1].tolist()[-1] == call


def test_end_tokens_of_a_model_in_memory_are_those_of_its_generation_config_unless_the_tokenizer_has_some():
    tokenizer = byte_tokenizer(template=MARKED)
    for ids in ([2, 3], 2):  # the first ones stay
        record_end_ids(tokenizer, SimpleNamespace(generation_config=GenerationConfig(eos_token_id=ids)))
        assert {2, 3} < {*Template(tokenizer).stop_ids}
