"""Online DPO and Nash-MD: win rates within a group, chosen pairs, truncation, and a cyclic preference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from postrain.errors import ConfigError
from postrain.methods.metrics import combine
from postrain.methods.online_dpo import average_preference
from postrain.models.scoring import score
from postrain.rewards.function import PairwiseFunction
from postrain.rollout.engine import Mixture
from postrain.types import Completion, Sampling, Stop
from tests.methods.builders import ScriptedEngine, make_method
from tests.methods.test_rollouts import FirstTokenReward, NumberTemplate, prompts
from tests.tiny import tiny_model
from tests.training_runs import composed

NAN = float("nan")


class TablePreference:
    """P(a beats b), looked up by the first tokens of both; 0.5 if the table has no entry."""

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        self.table = table

    def compare(self, prompts: Any, first: Sequence[str], second: Sequence[str], columns: Any) -> torch.Tensor:
        pairs = zip(first, second, strict=True)
        return torch.tensor([self.table.get((one.split()[0], other.split()[0]), 0.5) for one, other in pairs])

    def to(self, device: Any) -> None: ...


def test_average_preference_ignores_self_comparison_and_nan():
    beats_PGG = torch.tensor([[[0.5, 1.0, 0.8], [0.0, 0.5, NAN], [0.2, NAN, 0.5]]])
    # Means of 1 and 0.8, of 0, and of 0.2.
    assert average_preference(beats_PGG).tolist() == [pytest.approx([0.9, 0.0, 0.2])]
    assert average_preference(torch.full((1, 2, 2), NAN)).isnan().all()


def test_preference_from_rewards_is_the_sigmoid_of_their_difference():
    components = {
        "engine": ScriptedEngine([[1, 0], [2, 0], [3, 0]]),
        "template": NumberTemplate(),
        "reward": FirstTokenReward({"1": 2.0, "2": 1.0, "3": NAN}),
    }
    method = make_method("nash_md", tiny_model(), components=components, preference_temperature=0.5)
    sampled = method.rollout(prompts(3))
    # sigmoid((2 - 1) / 0.5) = 0.8808; the reverse is 0.1192; the third reward is unscorable.
    beats_B = method.preference(sampled, sampled.select([1, 0, 0]))
    assert beats_B[:2].tolist() == pytest.approx([0.8808, 0.1192], abs=1e-4)
    assert beats_B[2].isnan()


def test_unscorable_completion_is_neither_best_nor_worst():
    # Comparisons with 4 are unscorable. Of the other two, 3 is the best and 1 the worst.
    table = {("1", "3"): 0.3, ("3", "1"): 0.45} | {pair: NAN for known in "13" for pair in ((known, "4"), ("4", known))}
    method = scripted_method("online_dpo", [[1, 0], [4, 0], [3, 0]], table, group_size=3, batch_size=1)
    prepared = method.prepare(prompts(1))
    assert prepared.pairs.chosen.ids[0].tolist()[2:] == [3, 0]
    assert prepared.pairs.rejected.ids[0].tolist()[2:] == [1, 0]


def longer(first: list[str], second: list[str], bonus: float = 0.0) -> list[float | None]:
    return [None if not one else float(len(one) > len(other)) + bonus for one, other in zip(first, second, strict=True)]


def test_pairwise_function_returns_preferences_and_refuses_other_numbers(monkeypatch):
    preference = PairwiseFunction(function=f"{__name__}.longer", arguments={})
    beats_B = preference.compare(["p", "p", "p"], ["aaa", "a", ""], ["a", "aa", "b"], [{}, {}, {}])
    assert beats_B[:2].tolist() == [1, 0]
    assert beats_B[2].isnan()
    invalid = PairwiseFunction(function=f"{__name__}.longer", arguments={"bonus": 0.5})
    with pytest.raises(ConfigError, match=r"longer .*returned 1\.5.*probability"):
        invalid.compare(["p"], ["aa"], ["a"], [{}])


def scripted_method(
    name: str, completions: Sequence[Sequence[int]], table: dict[tuple[str, str], float], **changes: Any
) -> Any:
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "preference": TablePreference(table),
    }
    method = make_method(name, tiny_model(), components=components, **{"batch_size": 2, "group_size": 2, **changes})
    method.accumulated = {}
    return method


def test_online_dpo_pairs_the_best_with_the_worst_completion():
    table = {("3", "1"): 0.9, ("1", "3"): 0.1}
    method = scripted_method("online_dpo", [[1, 0], [3, 4, 0], [2, 0], [2, 0]], table)
    prepared = method.prepare(prompts(2))
    assert prepared.decided_B.tolist() == [True, False]
    assert prepared.pairs.chosen.ids[0].tolist() == [5, 6, 3, 4, 0]
    assert prepared.pairs.rejected.ids[0].tolist() == [5, 6, 1, 0]
    assert prepared.cost()[1] == 0
    # The policy equals its reference: log-ratios are 0 and the loss of a pair is ln 2.
    assert float(method.loss_sum(prepared.select([0])).total.detach()) == pytest.approx(0.6931, abs=1e-4)


def test_tied_pairs_of_xpo_have_its_own_term_alone():
    # Completion 2 is the policy's, 7 the reference's; no preference between them.
    method = scripted_method("online_dpo", [[2, 0], [7, 0]], {}, batch_size=1, xpo_alpha=0.3)
    prepared = method.prepare(prompts(1))
    assert (prepared.decided_B.tolist(), prepared.in_loss_B.tolist()) == ([False], [True])
    assert prepared.cost()[0] > 0
    both = (prepared.pairs.chosen, prepared.pairs.rejected)
    assert [rows.ids[0].tolist()[2:] for rows in both] == [[2, 0], [7, 0]]
    found = method.loss_sum(prepared)
    of_reference = float(score(method.policy, prepared.pairs.rejected).logps_BT.sum())
    assert float(found.total.detach()) == pytest.approx(0.3 * of_reference, rel=1e-5)
    # Nothing to compare: no accuracy.
    assert combine(found.metrics) == {}


def test_truncated_completion_of_the_reference_is_masked_in_the_term_of_xpo():
    # The reference's completion 7 is truncated in the first prompt; the policy's own completion 2 in the second.
    method = scripted_method(
        "online_dpo", [[2, 0], [2, 3], [7, 4], [7, 0]], {}, xpo_alpha=0.3, mask_truncated_completions=True
    )
    prepared = method.prepare(prompts(2))
    assert prepared.in_loss_B.tolist() == [False, True]
    of_reference = float(score(method.policy, prepared.pairs.rejected).logps_BT[1].sum())
    assert float(method.loss_sum(prepared).total.detach()) == pytest.approx(0.3 * of_reference, rel=1e-5)


SCORES = {"1": 0.1, "2": 0.5, "3": 0.9}


def rewarded_method(name: str, completions: Sequence[Sequence[int]], **changes: Any) -> Any:
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(SCORES),
    }
    settings = {"batch_size": 1, "group_size": 3, "preference_temperature": 1.0, **changes}
    method = make_method(name, tiny_model(), components=components, **settings)
    method.accumulated = {}
    return method


@pytest.mark.parametrize(
    ("changes", "chosen", "rejected"),
    [
        # The best completion, 3, is truncated: no penalty; reward 0.9 - 0.5 (second); 0.9 - 1 (last); masked.
        ({}, [3, 4], [1, 0]),
        ({"missing_eos_penalty": 0.5}, [2, 0], [1, 0]),
        ({"missing_eos_penalty": 1.0}, [2, 0], [3, 4]),
        ({"mask_truncated_completions": True}, [2, 0], [1, 0]),
    ],
)
def test_online_dpo_penalises_or_masks_truncated_completions(changes, chosen, rejected):
    prepared = rewarded_method("online_dpo", [[1, 0], [3, 4], [2, 0]], **changes).prepare(prompts(1))
    assert prepared.decided_B.tolist() == [True]
    assert [rows.ids[0].tolist()[2:] for rows in (prepared.pairs.chosen, prepared.pairs.rejected)] == [chosen, rejected]


def test_online_dpo_with_one_unmasked_completion_has_no_pair():
    prepared = rewarded_method("online_dpo", [[1, 0], [3, 4], [2, 5]], mask_truncated_completions=True).prepare(
        prompts(1)
    )
    assert prepared.decided_B.tolist() == [False]


def test_nash_md_penalises_or_masks_truncated_completions():
    mine, theirs = [[3, 4], [1, 0]], [[2, 0], [2, 7]]

    def advantages(**changes: Any) -> tuple[list[float], list[bool]]:
        prepared = rewarded_method("nash_md", mine + theirs, group_size=2, **changes).prepare(prompts(1))
        return prepared.advantages_BT[:, 0].tolist(), [bool(cost) for cost in prepared.cost()]

    def beats(*gaps: float) -> float:
        return sum(1 / (1 + math.exp(-gap)) for gap in gaps) / len(gaps) - 0.5

    # The KL is 0 before the first update. Rewards 0.9 and 0.1 against 0.5 and 0.5.
    assert advantages() == (pytest.approx([beats(0.4, 0.4), beats(-0.4, -0.4)]), [True, True])
    # The first completion and the second of the opponent are truncated: 0.6 and 0.1 against 0.5 and 0.2.
    assert advantages(missing_eos_penalty=0.3) == (pytest.approx([beats(0.1, 0.4), beats(-0.4, -0.1)]), [True, True])
    # Masked: the first has no advantage and no forward pass; the second is compared with the opponent's first only.
    assert advantages(mask_truncated_completions=True) == (pytest.approx([0.0, beats(-0.4)]), [False, True])


@pytest.mark.parametrize("name", ["online_dpo", "nash_md"])
def test_missing_eos_penalty_without_a_reward_is_refused(name):
    with pytest.raises(ConfigError, match=r"missing_eos_penalty=1.*TablePreference only compares.*mask_truncated_comp"):
        scripted_method(name, [[1, 0]], {}, missing_eos_penalty=1.0)


def test_grpo_refuses_a_pairwise_preference(tmp_path):
    from postrain.jobs.session import TRAIN, execute  # noqa: PLC0415  # only this test starts a run

    words = ["method=grpo", "reward=pairwise", f"reward.function={__name__}.longer", f"paths.output={tmp_path}"]
    with pytest.raises(ConfigError, match=r"PairwiseFunction compares two completions, and GRPO needs a number"):
        execute(TRAIN, composed(words), overrides=[], group=None)


ROCK, PAPER, SCISSORS = 1, 2, 3
CIRCLE = {("2", "1"): 1.0, ("1", "2"): 0.0, ("3", "2"): 1.0, ("2", "3"): 0.0, ("1", "3"): 1.0, ("3", "1"): 0.0}


def one_token_model(probabilities: Sequence[float]) -> Any:
    """A model that samples rock, paper or scissors with these probabilities after any prompt."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=48,
        bos_token_id=0,
        eos_token_id=0,
        n_layer=1,
        n_embd=8,
        n_head=1,
        n_positions=8,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    model = GPT2LMHeadModel(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.zeros(48, 8))
    logits_V = torch.full((48,), -20.0)
    logits_V[ROCK : SCISSORS + 1] = torch.tensor(probabilities).log()
    with torch.no_grad():
        # The final norm outputs its bias for every input, so that the first column of the head holds the logits.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(8)[0])
        model.lm_head.weight[:, 0] = logits_V
    return model


class OneTokenEngine:
    """Samples one token from a `one_token_model`, or from a mixture of two; ignores the prompt."""

    sampling, exact_logps = Sampling(1), True

    def generate(self, model: Any, prompts: Any, *, seeds: Sequence[int], stop: Stop) -> list[Completion]:
        logps_V = self.logps(model)
        draws = torch.multinomial(logps_V.exp(), len(seeds), True, generator=torch.Generator().manual_seed(seeds[0]))
        return [Completion(token[None], logps_V[token][None], False) for token in draws]

    @torch.no_grad()
    def logps(self, model: Any) -> torch.Tensor:
        if not isinstance(model, Mixture):
            return model(torch.tensor([[5]])).logits[0, -1].log_softmax(-1)
        with model.reference.scoring() as reference:
            reference_V = self.logps(reference)
        return ((1 - model.coef) * self.logps(model.policy) + model.coef * reference_V).log_softmax(-1)


def action_probabilities(model: Any) -> list[float]:
    with torch.no_grad():
        return model(torch.tensor([[5]])).logits[0, -1].softmax(-1)[ROCK : SCISSORS + 1].tolist()


def test_nash_md_on_rock_paper_scissors_converges_to_uniform():
    """No scalar reward expresses a cyclic preference: its optimum is a single action. The Nash equilibrium is uniform.

    The initial policy samples rock with probability 0.9; the reference policy is uniform.
    """
    policy, reference = one_token_model([0.9, 0.07, 0.03]), one_token_model([1 / 3, 1 / 3, 1 / 3])
    components = {"engine": OneTokenEngine(), "template": NumberTemplate(), "preference": TablePreference(CIRCLE)}
    settings = {"batch_size": 32, "group_size": 8, "beta": 0.1, "mixture_coef": 0.25}
    method = make_method("nash_md", policy, reference=reference, components=components, **settings)
    # Only the logits of the head are trained.
    optimizer = torch.optim.SGD([policy.lm_head.weight], lr=3.0)
    batch = prompts(32)
    for update in range(60):
        method.accumulated, method.counters.updates = {}, update
        loss = method.loss_sum(method.prepare(batch)).total / 256
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert action_probabilities(policy) == pytest.approx([1 / 3] * 3, abs=0.08)
