"""Learning from who beats whom: standings, judged pairs, Nash's advantages, and what no reward can express."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from postrain.errors import ConfigError
from postrain.methods.online_dpo import average_preference
from postrain.rewards.function import PairwiseFunction
from postrain.rollout.engine import Mixture
from postrain.types import Completion, Sampling, Stop
from tests.methods.builders import ScriptedEngine, make_method
from tests.methods.test_rollouts import FirstTokenReward, NumberTemplate, prompts
from tests.tiny import tiny_model
from tests.training_runs import composed

NAN = float("nan")


class TablePreference:
    """Prefers by a table of first tokens: P(a beats b)."""

    def __init__(self, table: dict[tuple[str, str], float]) -> None:
        self.table = table

    def compare(self, prompts: Any, first: Sequence[str], second: Sequence[str], columns: Any) -> torch.Tensor:
        pairs = zip(first, second, strict=True)
        return torch.tensor([self.table.get((one.split()[0], other.split()[0]), 0.5) for one, other in pairs])

    def to(self, device: Any) -> None: ...


def test_average_preference_skips_self_comparison_and_nan():
    beats_PGG = torch.tensor([[[0.5, 1.0, 0.8], [0.0, 0.5, NAN], [0.2, NAN, 0.5]]])
    # 1 and 0.8; 0; 0.2.
    assert average_preference(beats_PGG).tolist() == [pytest.approx([0.9, 0.0, 0.2])]
    assert average_preference(torch.full((1, 2, 2), NAN)).isnan().all()


def test_a_reward_becomes_a_preference_by_its_difference():
    components = {
        "engine": ScriptedEngine([[1, 0], [2, 0], [3, 0]]),
        "template": NumberTemplate(),
        "reward": FirstTokenReward({"1": 2.0, "2": 1.0, "3": NAN}),
    }
    found = make_method("nash_md", tiny_model(), components=components, preference_temperature=0.5)
    drawn = found.rollout(prompts(3))
    # sigmoid((2 - 1) / 0.5) = 0.8808, the reverse 0.1192, and nobody knows.
    beats_B = found.preference(drawn, drawn.select([1, 0, 0]))
    assert beats_B[:2].tolist() == pytest.approx([0.8808, 0.1192], abs=1e-4)
    assert beats_B[2].isnan()


def test_an_unscorable_completion_is_neither_best_nor_worst():
    # 1 never beats the two that are known, nobody can tell of 4: without it 3 is the best and 1 the worst.
    table = {("1", "3"): 0.3, ("3", "1"): 0.45} | {pair: NAN for known in "13" for pair in ((known, "4"), ("4", known))}
    found = scripted_method("online_dpo", [[1, 0], [4, 0], [3, 0]], table, group_size=3, batch_size=1)
    prepared = found.prepare(prompts(1))
    assert prepared.pairs.chosen.ids[0].tolist()[2:] == [3, 0]
    assert prepared.pairs.rejected.ids[0].tolist()[2:] == [1, 0]


def longer(first: list[str], second: list[str], bonus: float = 0.0) -> list[float | None]:
    return [None if not one else float(len(one) > len(other)) + bonus for one, other in zip(first, second, strict=True)]


def test_a_function_compares(monkeypatch):
    found = PairwiseFunction(function=f"{__name__}.longer", arguments={})
    beats_B = found.compare(["p", "p", "p"], ["aaa", "a", ""], ["a", "aa", "b"], [{}, {}, {}])
    assert beats_B[:2].tolist() == [1, 0]
    assert beats_B[2].isnan()
    wrong = PairwiseFunction(function=f"{__name__}.longer", arguments={"bonus": 0.5})
    with pytest.raises(ConfigError, match=r"longer .*returned 1\.5.*probability"):
        wrong.compare(["p"], ["aa"], ["a"], [{}])


def scripted_method(
    method: str, completions: Sequence[Sequence[int]], table: dict[tuple[str, str], float], **changes: Any
) -> Any:
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "preference": TablePreference(table),
    }
    found = make_method(method, tiny_model(), components=components, **{"batch_size": 2, "group_size": 2, **changes})
    found.accumulated = {}
    return found


def test_online_dpo_keeps_the_best_and_the_worst():
    table = {("3", "1"): 0.9, ("1", "3"): 0.1}
    found = scripted_method("online_dpo", [[1, 0], [3, 4, 0], [2, 0], [2, 0]], table)
    prepared = found.prepare(prompts(2))
    assert prepared.decided_B.tolist() == [True, False]
    assert prepared.pairs.chosen.ids[0].tolist() == [5, 6, 3, 4, 0]
    assert prepared.pairs.rejected.ids[0].tolist() == [5, 6, 1, 0]
    assert prepared.cost()[1] == 0
    # The policy is its reference: the gap is 0 and each pair's loss ln 2.
    assert float(found.loss_sum(prepared.select([0])).total.detach()) == pytest.approx(0.6931, abs=1e-4)


SCORES = {"1": 0.1, "2": 0.5, "3": 0.9}


def rewarded_method(method: str, completions: Sequence[Sequence[int]], **changes: Any) -> Any:
    components = {
        "engine": ScriptedEngine(completions),
        "template": NumberTemplate(),
        "reward": FirstTokenReward(SCORES),
    }
    settings = {"batch_size": 1, "group_size": 3, "preference_temperature": 1.0, **changes}
    found = make_method(method, tiny_model(), components=components, **settings)
    found.accumulated = {}
    return found


@pytest.mark.parametrize(
    ("changes", "chosen", "rejected"),
    [
        # 3 is best and cut. As it is; less 0.5 (0.4 of 0.9: between the others); less 1 (the worst); left out.
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


def test_online_dpo_with_one_whole_completion_has_no_pair():
    prepared = rewarded_method("online_dpo", [[1, 0], [3, 4], [2, 5]], mask_truncated_completions=True).prepare(
        prompts(1)
    )
    assert prepared.decided_B.tolist() == [False]


def test_nash_md_penalises_or_masks_truncated_completions():
    mine, theirs = [[3, 4], [1, 0]], [[2, 0], [2, 7]]

    def won(**changes: Any) -> tuple[list[float], list[bool]]:
        prepared = rewarded_method("nash_md", mine + theirs, group_size=2, **changes).prepare(prompts(1))
        return prepared.advantages_BT[:, 0].tolist(), [bool(cost) for cost in prepared.cost()]

    def beats(*gaps: float) -> float:
        return sum(1 / (1 + math.exp(-gap)) for gap in gaps) / len(gaps) - 0.5

    # Before the first update there is no KL: 0.9 and 0.1 against 0.5 and 0.5.
    assert won() == (pytest.approx([beats(0.4, 0.4), beats(-0.4, -0.4)]), [True, True])
    # Less 0.3 for the policy's first and the opponent's second: 0.6 and 0.1 against 0.5 and 0.2.
    assert won(missing_eos_penalty=0.3) == (pytest.approx([beats(0.1, 0.4), beats(-0.4, -0.1)]), [True, True])
    # Left out: the first has no advantage and no pass, the second meets the opponent's first alone.
    assert won(mask_truncated_completions=True) == (pytest.approx([0.0, beats(-0.4)]), [False, True])


@pytest.mark.parametrize("method", ["online_dpo", "nash_md"])
def test_a_penalty_needs_a_reward_to_take_it_off(method):
    with pytest.raises(ConfigError, match=r"missing_eos_penalty=1.*TablePreference only compares.*mask_truncated_comp"):
        scripted_method(method, [[1, 0]], {}, missing_eos_penalty=1.0)


def test_grpo_refuses_a_pairwise_preference(tmp_path):
    from postrain.jobs.session import TRAIN, execute  # noqa: PLC0415  # only this test runs anything

    words = ["method=grpo", "reward=pairwise", f"reward.function={__name__}.longer", f"paths.output={tmp_path}"]
    with pytest.raises(ConfigError, match=r"PairwiseFunction compares two completions, and GRPO needs a number"):
        execute(TRAIN, composed(words), overrides=[], group=None)


ROCK, PAPER, SCISSORS = 1, 2, 3
CIRCLE = {("2", "1"): 1.0, ("1", "2"): 0.0, ("3", "2"): 1.0, ("2", "3"): 0.0, ("1", "3"): 1.0, ("3", "1"): 0.0}


def player(probabilities: Sequence[float]) -> Any:
    """A model of one token: from any prompt it samples rock, paper or scissors with these probabilities."""
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
        # The final normalisation gives its bias alone, and the head the logits of it.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(torch.eye(8)[0])
        model.lm_head.weight[:, 0] = logits_V
    return model


class OneTokenEngine:
    """Draws the one token from a player, or from the mixture of two, whatever the prompt."""

    sampling, exact = Sampling(1), True

    def generate(self, model: Any, prompts: Any, *, seeds: Sequence[int], stop: Stop) -> list[Completion]:
        logps_V = self.logps(model)
        draws = torch.multinomial(logps_V.exp(), len(seeds), True, generator=torch.Generator().manual_seed(seeds[0]))
        return [Completion(token[None], logps_V[token][None], False) for token in draws]

    @torch.no_grad()
    def logps(self, model: Any) -> torch.Tensor:
        if not isinstance(model, Mixture):
            return model(torch.tensor([[5]])).logits[0, -1].log_softmax(-1)
        with model.reference.scoring() as start:
            theirs_V = self.logps(start)
        return ((1 - model.coef) * self.logps(model.policy) + model.coef * theirs_V).log_softmax(-1)


def says(model: Any) -> list[float]:
    with torch.no_grad():
        return model(torch.tensor([[5]])).logits[0, -1].softmax(-1)[ROCK : SCISSORS + 1].tolist()


def test_nash_md_on_rock_paper_scissors_converges_to_uniform():
    """No reward can express a circle: whatever is paid most would be all that is said. The equilibrium plays all alike.

    The policy begins with rock, nearly always; the start it is held to plays uniformly.
    """
    policy, start = player([0.9, 0.07, 0.03]), player([1 / 3, 1 / 3, 1 / 3])
    components = {"engine": OneTokenEngine(), "template": NumberTemplate(), "preference": TablePreference(CIRCLE)}
    settings = {"batch_size": 32, "group_size": 8, "beta": 0.1, "mixture": 0.25}
    found = make_method("nash_md", policy, reference=start, components=components, **settings)
    # Only what the head makes of its constant input learns.
    optimizer = torch.optim.SGD([policy.lm_head.weight], lr=3.0)
    asked = prompts(32)
    for update in range(60):
        found.accumulated, found.counters.updates = {}, update
        loss = found.loss_sum(found.prepare(asked)).total / 256
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert says(policy) == pytest.approx([1 / 3] * 3, abs=0.08)
