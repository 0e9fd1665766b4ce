"""Filling contents into the text of the roles gives the text of the template, and is used only where that is proved."""

from __future__ import annotations

import random
from datetime import datetime
from types import SimpleNamespace

import pytest

from postrain.data.rendering import clock_at, render
from postrain.data.skeletons import Skeletons
from postrain.data.template_choice import INSTRUCTION, bundled
from postrain.data.template_proof import inserts_contents
from postrain.errors import ConfigError
from tests.data.helpers import MARKED, STRIPPING, UNMARKED

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SYSTEM_FIRST = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}{{ bos_token }}{% for m in rest %}"
)
INSERTING = {
    "smollm": "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are SmolLM<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + "
    "message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% set role = 'model' if m.role == 'assistant' else m.role"
    " %}{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}",
    "llama 3": "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% for m in messages %}{% set content = '<|start|>' + m['role'] + '<|end|>\n\n' + m['content'] | trim + '<|eot|>'"
    " %}{% if loop.index0 == 0 %}{% set content = bos_token + date_string + content %}{% endif %}{{ content }}"
    "{% endfor %}",
    "system in the first user turn": SYSTEM_FIRST + "{% if loop.index0 == 0 and system %}{{ '<<SYS>> ' ~ system ~ ' '"
    " }}{% endif %}[{{ m.role }}] {{ m.content.strip() }} {{ eos_token if m.role == 'assistant' }}{% endfor %}",
    "namespace": "{% set ns = namespace(system='', first=true) %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ ns.system }}{% for m in messages if m.role != 'system'"
    " %}{% if m['content'] is not none and not m.get('tool_calls') %}<{{ m.role }}>{{ m['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt and messages[-1].role != 'assistant' %}<assistant>{% endif %}",
    "empty contents differ": "{% for m in messages %}{% if m.content %}{{ m.role ~ ': ' ~ m.content }}{% else %}-"
    "{% endif %}{% endfor %}",
    "filters of messages": "{% for m in messages | rejectattr('role', 'equalto', 'system') | list %}{{ m.content }}"
    "{% endfor %}{{ messages | length }}{{ (messages | last)['content'] }}",
    "marked": MARKED,
    "unmarked": UNMARKED,
    **{name: bundled(name, bos=True) for name in (*INSTRUCTION, "plain", "bot")},
}
OTHERS = {
    "reasoning removed": STRIPPING,
    "search": "{% for m in messages %}{% if '?' in m.content %}Q{% endif %}{{ m.content }}{% endfor %}",
    "length": "{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}",
    "upper": "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
    "joined, then stripped": "{% for m in messages %}{{ (' ' + m.content) | trim }}{% endfor %}",
    "stripped on one side": "{% for m in messages %}{{ m.content.lstrip() }}{% endfor %}",
    "first letter": "{% for m in messages %}{{ m.content[0] }}{% endfor %}",
    "whole message": "{% for m in messages %}{{ m }}{% endfor %}",
    "as JSON": "{{ messages | tojson }}",
    "key in a variable": "{% set key = 'content' %}{% for m in messages %}{{ m[key] | upper }}{% endfor %}",
    "equal messages": "{% for m in messages %}{% if loop.first or m != loop.previtem %}{{ m.content }}{% endif %}"
    "{% endfor %}",
    "equal neighbours": "{% for m in messages %}{% if m.content == loop.previtem.content %}same{% endif %}{% endfor %}",
    "variable": "{% for m in messages %}{% set x = m.content %}{% if x == 'a' %}A{% endif %}{{ x }}{% endfor %}",
    "namespace under another name": "{% set ns = namespace(x='') %}{% set other = ns %}{% for m in messages %}"
    "{% set ns.x = m.content %}{% if other.x == 'a' %}A{% endif %}{% endfor %}{{ ns.x }}",
    "argument": "{% for m in messages %}{{ 'a b'.replace('b', m.content) | length }}{% endfor %}",
    "keyword": "{% for m in messages %}{{ x | default(value=m.content) | upper }}{% endfor %}",
    "loop over letters": "{% for m in messages %}{% for letter in m.content %}{{ letter }}.{% endfor %}{% endfor %}",
    "loop over values": "{% for m in messages %}{% for key, value in m.items() %}{{ value }}{% endfor %}{% endfor %}",
    "changed": "{% for m in messages %}{% if loop.changed(m.content) %}{{ m.content }}{% endif %}{% endfor %}",
    "macro": "{% macro up(m) %}{{ m.content | upper }}{% endmacro %}{% for m in messages %}{{ up(m) }}{% endfor %}",
    "block": "{% for m in messages %}{% set text %}{{ m.content }}{% endset %}{{ text | upper }}{% endfor %}",
    "filter block": "{% filter upper %}{% for m in messages %}{{ m.content }}{% endfor %}{% endfilter %}",
    "later assignment": "{% for m in messages %}{% if x == 1 %}A{% endif %}{% set x = m.content %}{{ x }}{% endfor %}",
    "placeholder": "{% for m in messages %}\u2003{{ m.content }}{% endfor %}",
}
CONTENTS = [
    "a",
    " a",
    "a\n",
    "What?",
    "{{ x }}",
    "<think>b</think> c",
    "\u2003 \ue0000\ue001 ",
    "",
    " \n",
    "</s>",
    "ü x",
]


def conversations():
    draw = random.Random(0)
    for number in range(60):
        roles = ["system"][: number % 3 == 0] + ["user", "assistant"] * 3
        roles = roles[: draw.randint(1, 5)]
        yield [{"role": role, "content": draw.choice(CONTENTS)} for role in roles]


@pytest.mark.parametrize("name", [*INSERTING, *OTHERS])
def test_filled_text_equals_the_rendered_text(name):
    source = {**INSERTING, **OTHERS}[name]
    skeletons, filled_rows = Skeletons(SimpleNamespace(special_tokens_map=SPECIAL)), 0
    with clock_at(datetime(2026, 1, 2)):
        for turns in conversations():
            for prompt in (True, False):
                filled = skeletons.fill(source, turns, prompt=prompt)
                if filled is not None:
                    assert filled == render(source, turns, SPECIAL, prompt=prompt)[0]
                    filled_rows += 1
    assert (filled_rows > 10) == (name in INSERTING)


def test_text_with_a_date_is_not_reused_without_a_fixed_clock():
    source = "{{ strftime_now('%S') }}" + UNMARKED
    assert not inserts_contents(source)
    skeletons, turns = Skeletons(SimpleNamespace(special_tokens_map=SPECIAL)), [{"role": "user", "content": "a"}]
    for second in (1, 2):
        with clock_at(datetime(2026, 1, 2, 0, 0, second)):
            filled = skeletons.fill(source, turns, prompt=True)
        assert filled is not None
        assert filled.startswith(f"0{second}<")


def test_conversation_that_a_template_refuses_is_left_to_the_template():
    turns = [{"role": "system", "content": "a"}]
    assert Skeletons(SimpleNamespace(special_tokens_map=SPECIAL)).fill(INSERTING["gemma"], turns, prompt=True) is None
    with pytest.raises(ConfigError, match="no system"):
        render(INSERTING["gemma"], turns, SPECIAL)


@pytest.mark.parametrize("extra", [{"tool_calls": []}, {"reasoning_content": "x"}])
def test_messages_with_further_fields_are_left_to_the_template(extra):
    turns = [{"role": "user", "content": "a", **extra}]
    assert Skeletons(SimpleNamespace(special_tokens_map=SPECIAL)).fill(UNMARKED, turns, prompt=True) is None
