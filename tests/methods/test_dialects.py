"""The losses of `dialect=` against values worked out from the formulas of TRL 1.16, verl 0.8 and OpenRLHF 0.11.

One prompt with two completions, of two tokens and of one:

    reward          1            0
    π             0.6  0.45     0.8
    π_old         0.4  0.5      0.2
    ratio         1.5  0.9      4
    π_ref         0.3  0.225    0.4      (π_ref/π = ½)

With ε = 0.2 and A for the first completion, −A for the second, the surrogates are −1.2 A, −0.9 A and 4 A; with the dual
clip at 3 the last is 3 A.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.methods.group_relative import GroupExperience
from postrain.methods.ppo import Experience
from postrain.models.scoring import Scores
from postrain.training.config import TrainConfig
from tests.methods.builders import make_method, rows
from tests.tiny import tiny_model
from tests.training_runs import CONF, composed, train_config

DIALECTS = sorted((file.parent.name, file.stem) for file in (CONF / "dialect").glob("*/*.yaml"))
MASK = torch.tensor([[True, True], [True, False]])
POLICY = torch.tensor([[0.6, 0.45], [0.8, 1.0]]).log()
OLD = torch.tensor([[0.4, 0.5], [0.2, 1.0]]).log()
REFERENCE = torch.where(MASK, POLICY + math.log(0.5), 0.0)
K3 = 0.5 - 1 - math.log(0.5)
STD = math.sqrt((0.5**2 + 0.5**2) / (2 - 1))  # of the rewards 1 and 0, with Bessel's correction


def learner(method: str, dialect: str, **changes: Any) -> Any:
    """The method with the keys of a dialect, whose policy has the probabilities above."""
    settings = composed([f"method={method}", f"dialect={dialect}"])["method"] | changes
    if "group_size" in settings:
        settings["group_size"] = 2
    made = make_method(method, tiny_model(), **settings)
    made.scored = lambda rows, head=None: Scores(POLICY, MASK, torch.zeros(2, 2))
    made.separate_values = lambda rows: torch.ones(2, 2)
    made.selected, made.accumulated = [0], {}
    return made


def completions() -> Any:
    prompt = torch.tensor([5])
    return rows([prompt, prompt], [torch.tensor([1, 2]), torch.tensor([3])])


def group_loss(made: Any) -> float:
    """The loss of the two completions, through advantages, weights and the sum over tokens."""
    penalty_BT = made.kl_coef * (OLD - REFERENCE) * MASK * (made.kl_in == "reward")
    advantages_BT = made.advantages(torch.tensor([[1.0, 0.0]]), penalty_BT, MASK)
    counted_B = torch.tensor([True, True])
    weight_B = made.weights(MASK.sum(1), counted_B)
    batch = GroupExperience(completions(), OLD, REFERENCE, advantages_BT, weight_B, counted_B)
    return float(made.loss_sum(batch).total / made.denominator(batch))


def test_trl_grpo_is_a_token_mean_without_kl():
    advantage = 0.5 / (STD + 1e-4)
    # (−1.2 − 0.9 + 4) A / 3 tokens
    assert group_loss(learner("grpo", "trl")) == pytest.approx(1.9 * advantage / 3, rel=1e-6)


def test_trl_kl_is_k3_times_the_importance_ratio():
    advantage = 0.5 / (STD + 1e-4)
    expected = 1.9 * advantage / 3 + 0.04 * K3 * (1.5 + 0.9 + 4) / 3
    assert group_loss(learner("grpo", "trl", kl_coef=0.04)) == pytest.approx(expected, rel=1e-6)


def test_verl_grpo_clips_the_ratio_at_three_for_negative_advantages():
    advantage = 0.5 / (STD + 1e-6)
    # (−1.2 − 0.9 + 3) A / 3 tokens
    assert group_loss(learner("grpo", "verl")) == pytest.approx(0.9 * advantage / 3, rel=1e-6)


def test_openrlhf_grpo_adds_the_plain_k3():
    advantage = 0.5 / (STD + 1e-9)
    expected = 1.9 * advantage / 3 + 0.01 * K3
    assert group_loss(learner("grpo", "openrlhf")) == pytest.approx(expected, rel=1e-6)


def test_trl_rloo_has_one_ratio_per_completion_and_the_kl_in_the_reward():
    # log π_old/π_ref summed over each completion
    kl = math.log(0.4 / 0.3) + math.log(0.5 / 0.225), math.log(0.2 / 0.4)
    advantage = (1 - 0.05 * kl[0]) - (0 - 0.05 * kl[1])
    # Ratios 1.35, clipped to 1.2, and 4, whose advantage is negative; a mean of two completions.
    assert group_loss(learner("rloo", "trl")) == pytest.approx((-1.2 + 4) * advantage / 2, rel=1e-6)


@pytest.mark.parametrize(("dialect", "last"), [("verl", 3.0), ("openrlhf", 4.0)])
def test_ppo_policy_and_value_losses_are_token_means(dialect, last):
    advantages_BT = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    old_values_BT, returns_BT = torch.full((2, 2), 0.2), torch.zeros(2, 2)
    included_B = torch.tensor([True, True])
    batch = Experience(completions(), OLD, REFERENCE, old_values_BT, advantages_BT, returns_BT, included_B)
    made = learner("ppo", dialect)
    # Values 1, old values 0.2, returns 0: ½ max(1², (0.2 + 0.5)²) = ½ for each token.
    expected = (-1.2 - 0.9 + last) / 3 + 0.5
    assert float(made.loss_sum(batch).total / made.denominator(batch)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dialect", ["trl", "openrlhf"])
def test_dpo_of_the_dialects_is_the_default(dialect):
    assert composed(["method=dpo", f"dialect={dialect}"])["method"] == composed(["method=dpo"])["method"]


@pytest.mark.parametrize(("library", "method"), DIALECTS)
def test_every_dialect_builds_its_method_and_is_recorded(library, method):
    config = train_config([f"method={method}", f"dialect={library}"])
    assert isinstance(config, TrainConfig)
    assert config.dialect == f"{library}/{method}"
    first, *_ = (CONF / "dialect" / library / f"{method}.yaml").read_text().splitlines()
    assert first.startswith("# ")


def test_the_command_line_overrides_a_dialect_and_the_dialect_an_experiment():
    assert composed(["method=grpo", "dialect=verl", "method.epochs=3"])["method"]["epochs"] == 3
    words = ["experiment=recipe/gpu_grpo", "data.path=rows.jsonl"]
    assert composed([*words, "dialect=trl"])["method"]["loss_type"] == "dapo"


def test_a_dialect_replaces_the_loss_options_of_an_experiment(tmp_path):
    (tmp_path / "experiment").mkdir()
    options = "{delta: 4.0, importance_sampling_level: sequence}"
    (tmp_path / "experiment/mine.yaml").write_text(f"# @package _global_\nmethod:\n  loss_options: {options}\n")
    words = ["method=grpo", "experiment=mine", f"hydra.searchpath=[{tmp_path}]"]
    assert composed(words)["method"]["loss_options"]["delta"] == 4.0
    for dialect, delta in (("trl", None), ("openrlhf", None), ("verl", 3.0)):
        found = composed([*words, f"dialect={dialect}"])["method"]["loss_options"]
        assert found == {"delta": delta, "importance_sampling_level": None}
    # null is unset: a loss without these options accepts it.
    assert make_method("grpo", tiny_model(), loss="gspo", loss_options={"delta": None}).chosen_loss.options == {}


@pytest.mark.parametrize(
    ("dialect", "change", "key"),
    [
        ("verl", "method.loss=gspo", "method.loss_options.delta"),
        ("openrlhf", "method.advantage=opo", "method.advantage_options.epsilon"),
    ],
)
def test_a_key_of_the_dialect_without_effect_is_named_as_such(dialect, change, key):
    with pytest.raises(ConfigError) as refused:
        train_config(["method=grpo", f"dialect={dialect}", change])
    assert str(refused.value).startswith(f"{key}: ")
    assert str(refused.value).endswith(f" (set by dialect={dialect}; remove it with '~{key}')")
    # Another value is the user's own.
    with pytest.raises(ConfigError, match=r"it has (none|clip_low, clip_high)$"):
        train_config(["method=grpo", f"dialect={dialect}", change, f"{key}=5.0"])


def test_dialect_without_the_method_is_refused_with_those_it_has():
    with pytest.raises(ConfigError) as refused:
        train_config(["method=sft", "dialect=trl"])
    assert str(refused.value).startswith("dialect=trl: has no loss for this method; it has one for dpo, grpo, rloo;")


def test_dual_clip_within_the_clip_is_refused():
    with pytest.raises(ConfigError, match=r"method\.dual_clip=1\.1: expected above 1"):
        make_method("ppo", tiny_model(), dual_clip=1.1)
    with pytest.raises(ConfigError, match=r"expected above 1 \+ method\.clip_high = 1\.3"):
        make_method("ppo", tiny_model(), clip_high=0.3, dual_clip=1.25)
