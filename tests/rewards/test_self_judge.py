"""judge.SelfJudge: preferences from log-probabilities of letters, independent of the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from postrain.config.tree import instantiate
from postrain.data.conversation import user
from postrain.errors import ConfigError
from postrain.rewards.judge import QUESTION, SelfJudge
from tests.rewards.test_configs import CONF
from tests.rewards.test_reward_model import NANO, reward_model

POLITE, BRIEF = "The reply is polite.", "The reply is short."
PROMPTS = ("Say hello.", "What is 3 + 4?", "Tell a story.")
FIRST = ("Hello, dear friend!", "7", "Tom ran home. He was glad.")
SECOND = ("Go away.", "It is 8, of course.", "Tom.")


def judge(*principles: str, path: Path = NANO, **changes: Any) -> SelfJudge:
    settings = {"path": str(path), "principles": list(principles or (POLITE,)), **changes}
    return instantiate(OmegaConf.to_container(OmegaConf.merge(OmegaConf.load(CONF / "self_judge.yaml"), settings)))


@pytest.fixture(scope="module")
def polite() -> SelfJudge:
    return judge(POLITE)


def beats(comparer: SelfJudge, order: tuple[int, ...] = (0, 1, 2), swapped: bool = False) -> torch.Tensor:
    first, second = (SECOND, FIRST) if swapped else (FIRST, SECOND)
    prompts, one, other = ([texts[i] for i in order] for texts in (PROMPTS, first, second))
    return comparer.compare(prompts, one, other, [{}] * len(order))


def test_preference_equals_next_token_probabilities_in_both_orders(polite: SelfJudge) -> None:
    def probability_of_a(first: str, second: str) -> float:
        question = QUESTION.format(prompt=PROMPTS[0], first=first, second=second, principle=POLITE)
        ids, (a, b) = polite.template.encode_completions(user(question), ("A", "B"))
        logits_V = polite.model(input_ids=ids[None]).logits[0, -1]
        return float(torch.sigmoid(logits_V[a[0]] - logits_V[b[0]]))

    with torch.no_grad():
        expected = (probability_of_a(FIRST[0], SECOND[0]) + 1 - probability_of_a(SECOND[0], FIRST[0])) / 2
    assert 0 < expected < 1
    assert float(beats(polite, (0,))) == pytest.approx(expected, abs=1e-6)


def test_preference_does_not_depend_on_the_batch(polite: SelfJudge) -> None:
    together = beats(polite)
    assert len(set(together.tolist())) == 3
    torch.testing.assert_close(together, torch.cat([beats(polite, (i,)) for i in range(3)]), atol=1e-6, rtol=0)
    torch.testing.assert_close(together[[2, 0]], beats(judge(POLITE, micro_batch_tokens=1), (2, 0)), atol=1e-6, rtol=0)


def test_preference_is_antisymmetric(polite: SelfJudge) -> None:
    torch.testing.assert_close(beats(polite) + beats(polite, swapped=True), torch.ones(3), atol=1e-6, rtol=0)
    same = polite.compare(PROMPTS, FIRST, FIRST, [{}] * 3)
    torch.testing.assert_close(same, torch.full((3,), 0.5), atol=1e-6, rtol=0)


def test_principles_are_averaged(polite: SelfJudge) -> None:
    both, other = beats(judge(POLITE, BRIEF)), beats(judge(BRIEF))
    assert not torch.allclose(other, beats(polite), atol=1e-5)
    torch.testing.assert_close(both, (beats(polite) + other) / 2, atol=1e-6, rtol=0)


def test_question_beyond_the_context_is_nan(polite: SelfJudge) -> None:
    long = "word " * polite.context
    found = polite.compare([*PROMPTS[:1], *PROMPTS[:1]], [FIRST[0], long], [SECOND[0]] * 2, [{}] * 2)
    assert found.isnan().tolist() == [False, True]
    assert float(found[0]) == pytest.approx(float(beats(polite, (0,))), abs=1e-6)
    assert polite.compare(PROMPTS[:1], [long], [long], [{}]).isnan().all()


def test_self_judge_is_frozen_and_runs_in_bf16(polite: SelfJudge) -> None:
    polite.to("cpu")
    assert not any(parameter.requires_grad for parameter in polite.model.parameters())
    rounded = judge(POLITE, dtype="bf16")
    assert next(rounded.model.parameters()).dtype == torch.bfloat16
    torch.testing.assert_close(beats(rounded), beats(polite), atol=0.05, rtol=0)


def test_invalid_judges_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^reward.path=.*nowhere: there is no such directory"):
        judge(path=tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"^reward.path: .* is a reward model, which cannot generate"):
        judge(path=reward_model(tmp_path / "scores", architecture="gpt2"))
    with pytest.raises(ConfigError, match=r"^reward.principles: expected at least one sentence"):
        SelfJudge(path=str(NANO), principles=(), micro_batch_tokens=1, dtype="fp32")
