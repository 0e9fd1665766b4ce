"""What was learned before a reward failed is saved, and the rest follows as if nothing had happened."""

from __future__ import annotations

import pytest

from postrain.folder import RunFolder
from postrain.types import ConfigError
from tests.runs import final_state, records, resumed, same, small_run

WORDS = (
    "method=grpo",
    "method.resample=0",
    "reward=function",
    f"reward.function={__name__}.brittle",
    "trainer.checkpoint_every=100",
    "evaluation.greedy=false",
)
ANSWERS: list[bool] = []
"""Whether each further call is answered; all are once it is empty."""


def brittle(completions: list[str]) -> list[float]:
    """Pays for length, or breaks down."""
    if ANSWERS and not ANSWERS.pop(0):
        raise ConnectionError("the judge hung up")
    return [float(len(said)) for said in completions]


def test_a_reward_that_fails_in_the_third_update_costs_nothing(tmp_path):
    whole = small_run(tmp_path / "whole", *WORDS)
    # Asked before the first update, by the first evaluation, and once an update.
    ANSWERS.extend([True] * 4 + [False])
    with pytest.raises(ConfigError, match="ConnectionError: the judge hung up"):
        small_run(tmp_path / "broken", *WORDS)
    (path,) = (tmp_path / "broken").glob("*/*/*")
    folder = RunFolder(path)
    assert [saved.name for saved in folder.checkpoints.iterdir()] == ["update=000002.ckpt"]
    assert folder.status.read()["status"] == "failed"
    with pytest.raises(ConfigError, match=r"asks for reward\.function=\S+ \(runs this Python\); say it again"):
        resumed(folder)
    resumed(folder, *(word for word in WORDS if word.startswith("reward.function=")))
    assert records(folder) == records(whole)
    assert same(final_state(folder)["state_dict"], final_state(whole)["state_dict"])
