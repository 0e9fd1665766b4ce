"""Every conf/reward/*.yaml matches its constructor; those without external needs are also built."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from postrain.config.check import check
from postrain.config.tree import instantiate

CONF = Path(__file__).parents[2] / "conf" / "reward"
ENDPOINT = {"url": "http://127.0.0.1:8000/v1", "model": "judge"}
REQUIRED = {
    "function": {"function": "postrain.rewards.text.exact"},
    "pairwise": {"function": "postrain.rewards.text.exact"},
    "learned": {"path": "runs/reward"},
    "process": {"path": "runs/prm"},
    "judge": ENDPOINT,
    "judge_pairwise": ENDPOINT,
    "self_judge": {"path": "runs/sft"},
    "rubric": ENDPOINT,
    "rubric_local": {"path": "runs/sft"},
    "noisy": {"reward": OmegaConf.load(CONF / "answer.yaml")},
}


@dataclass
class Root:
    reward: Any


def node(file: Path) -> Any:
    found = OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(file), REQUIRED.get(file.stem, {})))
    assert isinstance(found, dict)
    return {key: value for key, value in found.items() if key != "defaults"}


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_reward_yaml_passes_the_check_and_begins_with_a_comment(file: Path) -> None:
    check({"reward": node(file)}, root=Root)
    assert file.read_text().startswith("# ")


@pytest.mark.parametrize(
    "name",
    [
        "world_mood",
        "world_gold",
        "answer",
        "function",
        "math",
        "format",
        "json",
        "constraints",
        "countdown",
        "reasoning",
        "noisy",
        "majority",
        "self_certainty",
        "random",
        "length_budget",
    ],
)
def test_every_reward_yaml_without_external_needs_is_built(name: str) -> None:
    instantiate(node(CONF / f"{name}.yaml"))
