"""The Paraphrases source: facts trained in some paraphrases and evaluated in others."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from postrain.config.tree import instantiate
from postrain.data.sources import Paraphrases
from postrain.errors import ConfigError
from postrain.world.gold import score
from tests.data.helpers import load_rows
from tests.training_runs import CONF

FACTS = [{"who": "Mia", "place": "river"}, {"who": "Tim", "place": "park"}]


def source(**changes: Any) -> Paraphrases:
    node = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "paraphrases.yaml"))
    assert isinstance(node, dict)
    small = {"facts": FACTS, "train_prompts": ["Where is {who}?", "Seen {who}?"], "eval_prompts": ["Find {who}."]}
    return instantiate({**node["source"], **small, "completion": "At the {place}.", **changes})


def test_train_and_eval_rows_share_facts_but_no_paraphrase() -> None:
    train, held_out = load_rows(source())
    assert [row["prompt"] for row in train] == ["Where is Mia?", "Where is Tim?", "Seen Mia?", "Seen Tim?"]
    assert [row["prompt"] for row in held_out] == ["Find Mia.", "Find Tim."]
    assert [row["completion"] for row in held_out] == ["At the river.", "At the park."]
    assert [row["answer"] for row in held_out] == ["river", "park"]


def test_gold_score_is_one_if_only_the_right_answer_is_named() -> None:
    _, (mia, _) = load_rows(source())
    completions = ("At the river.", "At the park.", "At the river or the park.", "")
    assert [score(mia["prompt"], text, mia["gold"])["total"] for text in completions] == [1.0, 0.0, 0.0, 0.0]


def test_bundled_facts_need_person_and_thing_to_determine_the_place() -> None:
    facts = OmegaConf.load(CONF / "data" / "paraphrases.yaml").source.facts
    for key in ("who", "thing"):
        assert all(len({f.place for f in facts if f[key] == one}) >= 2 for one in {f[key] for f in facts})
    assert len({(fact.who, fact.thing) for fact in facts}) == len(facts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"facts": []}, "data.source.facts: expected at least one"),
        ({"eval_prompts": []}, "data.source.eval_prompts: expected at least one paraphrase"),
        ({"train_prompts": ["Where is {thing}?"]}, "data.source.train_prompts: 'Where is {thing}?' cannot be filled"),
        ({"completion": "At {}."}, "data.source.completion: 'At {}.' cannot be filled"),
    ],
)
def test_invalid_paraphrase_settings_are_a_one_line_error(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as caught:
        source(**changes).load(eval_rows=8)
    assert str(caught.value).startswith(message)
