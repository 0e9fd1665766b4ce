"""Prompts that a model makes: the header of a chat template, few-shot lists, filters, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from postrain.config.check import check
from postrain.data.chat import Template
from postrain.errors import ConfigError
from postrain.generation.config import GenerateConfig
from postrain.generation.prompts import Magpie, SelfInstruct, user_turn
from postrain.generation.synthesize import filtered, save, whole_chunks
from postrain.jsonl import JsonLines
from tests.generation.small_generation import composed
from tests.training_runs import CONF

NANO = Path(__file__).parents[2] / "postrain" / "assets" / "nano"


def template(mode: str) -> Template:
    return Template(AutoTokenizer.from_pretrained(NANO), mode=mode)


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "prompts").glob("*.yaml")))
def test_every_prompts_option_fits_its_constructor(option):
    config = composed(f"prompts={option}")
    check(config, GenerateConfig)
    assert config.get("reward") is None


def test_header_of_the_user_turn_is_the_text_before_its_content():
    assert user_turn(template("chat")) == ("<|user|>\n", "<|end|>\n<|assistant|>\n")
    (ids,) = Magpie().contexts(template("chat"), (), (), (0,))
    assert template("chat").decode_all(ids.tolist()) == "<|user|>\n"
    header, _ = user_turn(template("alpaca"))
    assert header.endswith("### Instruction:\n")
    assert Magpie().stops(template("alpaca")) == ("### Response:",)
    with pytest.raises(ConfigError, match=r"^prompts=magpie: the template plain writes nothing before"):
        user_turn(template("plain"))


def test_few_shot_list_numbers_seeds_and_prompts_of_the_model():
    maker = SelfInstruct(examples=4, header="Tasks:")
    (ids,) = maker.contexts(template("chat"), ("Add\n1.", "Add 2.", "Add 3."), ("Own.",), (7,))
    lines = template("chat").decode_all(ids.tolist()).splitlines()
    assert (lines[0], lines[-1]) == ("Tasks:", "Task 5:")
    # A quarter of four is one of the model's own; line breaks of a seed become blanks.
    assert sorted(line.partition(": ")[2] for line in lines[1:-1]) == ["Add 1.", "Add 2.", "Add 3.", "Own."]
    with pytest.raises(ConfigError, match=r"expected at least 2 seed prompts in data, got 1"):
        maker.contexts(template("chat"), ("Add 1.",), (), (7,))


def test_filters_count_what_they_drop(tmp_path):
    texts = [
        "Say",
        "Name four red fruits.",
        "Name four red pets.",
        "Where is the sea?",
        "Where is the sea?",
        "Who am I?",
    ]
    candidates = [{"text": text, "finished": place != 5} for place, text in enumerate(texts)]
    # "Name four red" is common to a seed and the third text: 2 * 3 / 8 = 0.75.
    kept, dropped = filtered(Magpie(), ["Name four red birds."], candidates)
    assert kept == ["Where is the sea?"]
    assert dropped == {"shorter than 3 words": 1, "like a seed": 2, "like another": 1, "truncated": 1}
    with pytest.raises(ConfigError, match=r"1 of 6 sampled prompts passed the filters \(2 like a seed, "):
        save(kept, dropped, (), tmp_path)


def test_partial_chunk_at_the_end_of_the_file_is_removed(tmp_path):
    """Five candidates of chunks of two, the last cut in the middle: two whole chunks are left."""
    path = tmp_path / "candidates.jsonl"
    text = "".join(f'{{"text": "{number}", "finished": true}}\n' for number in range(5))
    path.write_text(text[:-4])
    assert [one["text"] for one in whole_chunks(JsonLines(path), 8, 2)] == ["0", "1", "2", "3"]
    assert path.read_text() == "".join(text.splitlines(keepends=True)[:4])
    assert len(whole_chunks(JsonLines(path), 3, 2)) == 3
