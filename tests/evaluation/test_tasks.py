"""Evaluation tasks against worked numbers, on a tiny model with a scripted engine."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.data.encode import EncodedRow
from postrain.data.kinds.preference import EncodedPair
from postrain.data.repetition import distinct_n
from postrain.errors import ConfigError
from postrain.evaluation.accuracy import Accuracy, Calibration, auroc, calibration_error
from postrain.evaluation.completion_metrics import GoldScores, KLDivergence, Lengths, Repetition, Rewards, distinct
from postrain.evaluation.completions import complete
from postrain.evaluation.differences import differences
from postrain.evaluation.estimate import student
from postrain.evaluation.eval_model_factory import EvalModelFactory
from postrain.evaluation.likelihood import Perplexity, PreferenceAccuracy, evenly_spaced, fact_record, rival_values
from postrain.evaluation.win_rate import WinRate, win_points
from postrain.models.reference import Reference
from postrain.rewards.base import none_to_nan
from postrain.types import RewardBatch, Sampling
from postrain.world.facts import all_facts
from tests.evaluation.fake_eval_model import eval_model, gold, make_prompts
from tests.methods.builders import float64_model, pairs, plain_logps
from tests.models.test_adapters import lora, moved


class ColumnReward:
    """A reward that returns the column `score`."""

    def __call__(self, prompts: Any, completions: Any, columns: Any) -> RewardBatch:
        if columns and "score" not in columns[0]:
            raise ConfigError("needs score")
        values = tuple(row["score"] for row in columns)
        return RewardBatch(none_to_nan(values), {"score": values})

    def to(self, device: Any) -> None:
        """Nothing to move."""


def encoded(rows: Any) -> list[EncodedRow]:
    return [EncodedRow(*item) for item in zip(rows.row_ids, rows.ids, rows.supervised, strict=True)]


def test_perplexity_is_over_all_tokens_with_one_record_per_row() -> None:
    rows = pairs(5).chosen
    given = eval_model(items={"Demonstration": encoded(rows)})
    found = Perplexity(rows=4)(given)
    sums = [-float(logps.detach().sum()) for logps in plain_logps(given.model, rows)][:4]
    tokens = [int(own.sum()) for own in rows.supervised][:4]
    assert found.metrics["loss"].value == pytest.approx(sum(sums) / sum(tokens))
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(sum(sums) / sum(tokens)))
    assert [one["weight"] for one in found.records] == tokens
    assert [one["loss"] for one in found.records] == pytest.approx(
        [total / count for total, count in zip(sums, tokens, strict=True)]
    )
    assert found.example == given.template.decode_all(rows.ids[0].tolist())


def test_preference_accuracy_by_summed_and_mean_log_probabilities() -> None:
    batch = pairs(6)
    sides = zip(encoded(batch.chosen), encoded(batch.rejected), strict=True)
    given = eval_model(items={"Preference": [EncodedPair(one.row, one, other, 0.0) for one, other in sides]})
    found = PreferenceAccuracy(pairs=99)(given)
    chosen, rejected = plain_logps(given.model, batch.chosen), plain_logps(given.model, batch.rejected)
    margins = [float((one.sum() - other.sum()).detach()) for one, other in zip(chosen, rejected, strict=True)]
    per_token = [float((one.mean() - other.mean()).detach()) for one, other in zip(chosen, rejected, strict=True)]
    assert found.metrics["accuracy"].value == pytest.approx(sum(margin > 0 for margin in margins) / 6)
    assert found.metrics["margin"].value == pytest.approx(sum(margins) / 6)
    assert found.metrics["accuracy_per_token"].value == pytest.approx(sum(margin > 0 for margin in per_token) / 6)
    assert found.metrics["margin_per_token"].value == pytest.approx(sum(per_token) / 6)


@pytest.mark.parametrize(
    ("task", "needs"),
    [
        (Perplexity(rows=4), "running text"),
        (PreferenceAccuracy(pairs=4), "needs preference pairs"),
        (Rewards(prompts=2), "needs a reward"),
        (GoldScores(prompts=2), "gold scores"),
        (KLDivergence(prompts=2), "reference=DIRECTORY"),
        (Accuracy(reward=ColumnReward(), threshold=1, prompts=2), "column answer"),
        (Calibration(reward=ColumnReward(), threshold=1, prompts=2), "column answer"),
    ],
)
def test_unsuitable_data_gives_a_note_instead_of_an_error(task: Any, needs: str) -> None:
    found = task(eval_model(reference=None))
    assert found.metrics == {}
    assert needs in found.notes[0]


def test_fact_is_known_if_its_log_probability_is_the_largest() -> None:
    grass = next(fact for fact in all_facts() if fact.subject == "grass")
    values = ["green", "red", "blue"]
    assert fact_record(grass, values, [-3.0, -4.0, -5.0])["fact_accuracy"] == 1
    assert fact_record(grass, values, [-3.0, -3.0, -5.0])["fact_accuracy"] == 0.5
    assert fact_record(grass, values, [-3.0, -4.0, -2.0])["likeliest"] == "blue"
    assert grass.value not in rival_values(grass)
    assert evenly_spaced(all_facts(), 10**6) == list(all_facts())
    assert len({fact.relation for fact in evenly_spaced(all_facts(), 24)}) == len(
        {fact.relation for fact in all_facts()}
    )


def test_completions_are_cached_between_tasks() -> None:
    given = eval_model(completions=[(5, 6, 0), (7, 0)])
    assert complete(given, 2) is complete(given, 2)
    assert complete(given, 2, greedy=True) is not complete(given, 2)
    assert given.engine.calls == 2


def test_lengths_include_the_end_token_and_report_truncation() -> None:
    found = Lengths(prompts=2)(eval_model(completions=[(5, 6, 0), (7,)]))
    assert found.metrics["tokens"].value == 2  # 3 and 1
    assert found.metrics["finished"].value == 0.5


def test_mean_reward_excludes_unscorable_completions() -> None:
    found = Rewards(prompts=3)(eval_model(prompts=make_prompts(3, score=[1.0, None, 0.5]), reward=ColumnReward()))
    assert found.metrics["total"].value == 0.75
    assert found.metrics["score"].n == 2
    assert found.metrics["unscorable"].value == pytest.approx(1 / 3)


def test_gold_scores_are_averaged_by_part() -> None:
    given = eval_model(prompts=make_prompts(2, gold=[{"total": 1.0}, {"total": 0.0, "polite": 0.5}]))
    found = GoldScores(prompts=2)(given)
    assert {name: (one.value, one.n) for name, one in found.metrics.items()} == {"total": (0.5, 2), "polite": (0.5, 1)}


def test_accuracy_is_the_share_that_reaches_the_threshold() -> None:
    given = eval_model(prompts=make_prompts(4, score=[1.0, 0.9, None, 1.0]))
    found = Accuracy(reward=ColumnReward(), threshold=1.0, prompts=4)(given)
    assert found.metrics["greedy"].value == pytest.approx(2 / 3)
    assert [one["greedy"] for one in found.records] == [True, False, None, True]


def test_calibration_error_matches_worked_example() -> None:
    # Two answers of confidence 0.95, one of them correct, and a wrong one of 0.25:
    # (|1 - 1.9| + |0 - 0.25|) / 3 = 1.15 / 3.
    found = calibration_error([0.95, 0.95, 0.25], [True, False, False])
    assert found.value == pytest.approx(1.15 / 3)
    assert 0 <= found.low <= found.value <= found.high <= 1
    given = eval_model(completions=[(5, 0), (7, 0)], prompts=make_prompts(2, score=[1.0, 0.0]))
    measured = Calibration(reward=ColumnReward(), threshold=1.0, prompts=2)(given)
    probabilities_B = complete(given, 2, greedy=True).logps_BT.sum(1).exp()
    assert measured.metrics["confidence"].value == pytest.approx(float(probabilities_B.mean()), rel=1e-5)


def test_auroc_is_the_share_of_correctly_ordered_pairs() -> None:
    # Of (0.9, 0.8), (0.9, 0.3), (0.7, 0.8), (0.7, 0.3), three pairs rank the correct answer higher.
    found = auroc([0.9, 0.8, 0.7, 0.3], [True, False, True, False])
    assert (found.value, found.n) == (0.75, 4)
    assert 0 <= found.low <= 0.75 <= found.high <= 1
    given = eval_model(completions=[(5, 0), (7, 0)] * 2, prompts=make_prompts(4, score=[1.0, 0.0, 1.0, 0.0]))
    assert "auroc" in Calibration(reward=ColumnReward(), threshold=1.0, prompts=4)(given).metrics
    assert "auroc" not in Calibration(reward=ColumnReward(), threshold=1.0, prompts=2)(given).metrics


def test_rows_without_supervised_tokens_have_no_loss() -> None:
    rows = pairs(5).chosen
    unsupervised = replace(rows, supervised=tuple(map(torch.zeros_like, rows.supervised)))
    found = Perplexity(rows=2)(eval_model(items={"Demonstration": encoded(unsupervised)}))
    assert found.metrics == {}
    assert "completions or running text" in found.notes[0]


def test_kl_is_zero_to_the_same_model_and_positive_to_another() -> None:
    assert KLDivergence(prompts=2)(eval_model()).metrics["per_token"].value == pytest.approx(0, abs=1e-9)
    given = eval_model(reference=Reference(float64_model(), float64_model(seed=1)))
    found = KLDivergence(prompts=2)(given)
    assert found.metrics["per_token"].value > 0
    # A completion has two tokens.
    assert found.metrics["per_completion"].value == pytest.approx(2 * found.metrics["per_token"].value)
    assert set(differences(found, found)) == {"per_token", "per_completion", "reference_logp"}
    # Untrained weights are near uniform: the mean log-probability is about -ln V nats/token, and at most 0.
    assert -2 * math.log(given.model.config.vocab_size) < found.metrics["reference_logp"].value < 0


def test_kl_of_an_adapter_is_that_of_its_merged_weights_to_the_base() -> None:
    adapted = moved(lora().wrap(float64_model(), head="causal")).eval()
    merged: Any = deepcopy(adapted)
    merged = merged.merge_and_unload()
    found, expected = (
        KLDivergence(prompts=2)(eval_model(model=model, reference=reference)).metrics["per_token"].value
        for model, reference in ((adapted, Reference(adapted)), (merged, Reference(merged, float64_model())))
    )
    assert found == pytest.approx(expected)
    assert found > 0


def test_distinct_n_jackknife_matches_recounting() -> None:
    texts = ["a b a b", "a b c", "d"]
    without = [distinct_n(texts[:at] + texts[at + 1 :], 2) for at in range(3)]
    # a b, b a, a b, a b, b c: 3 distinct of 5; without the first text 2 of 2, without the second 2 of 3.
    assert (distinct(texts, 2).value, without) == (0.6, [1.0, 2 / 3, 0.6])
    many = texts + [f"{at} {at} {at}" for at in range(9)]
    without = [distinct_n(many[:at] + many[at + 1 :], 2) for at in range(12)]
    mean = sum(without) / 12
    half = student(11) * math.sqrt(11 / 12 * sum((one - mean) ** 2 for one in without))
    # 3 of 5 and 9 of 18 bigrams are distinct: 12 of 23; the interval is on the logit scale.
    share = 12 / 23
    odds = share / (1 - share) * math.exp(-half / (share * (1 - share)))
    assert distinct(many, 2).low == pytest.approx(odds / (1 + odds))
    assert Repetition(prompts=2)(eval_model()).metrics["looping"].value == 0


def test_win_points_of_win_tie_and_loss() -> None:
    assert [win_points(2, 1), win_points(1, 1), win_points(1, 2), win_points(None, 1)] == [1.0, 0.5, 0.0, None]


def test_win_rate_of_equal_completions_is_one_half(monkeypatch: pytest.MonkeyPatch) -> None:
    given = eval_model(prompts=make_prompts(4, score=[1.0] * 4), reward=ColumnReward())
    monkeypatch.setattr(WinRate, "_theirs", lambda self, eval_model, data: complete(given, 4))
    monkeypatch.setattr(WinRate, "_other", SimpleNamespace(name="other"))
    given.data_as("Prompt").gold_score = None
    found = WinRate(against="other", judge=None, prompts=4)(given)
    assert found.metrics["win_rate"].value == 0.5
    assert found.notes == ("against other, judged by ColumnReward",)
    # Data with a gold function may have rows without a gold column.
    given.data_as("Prompt").gold_score = gold
    assert WinRate(against="other", judge=None, prompts=4)(given) == found


def test_opponent_is_resolved_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    task = WinRate(against="nano", judge=None, prompts=4)
    task.check(Sampling(4, 1.0))
    assert task._other.name == "nano"
    with pytest.raises(ConfigError, match=r"^evaluation\.tasks\.win_rate\.against=no/such: .*one of .*nano"):
        WinRate(against="no/such", judge=None, prompts=4).check(Sampling(4, 1.0))
    monkeypatch.setattr("postrain.evaluation.win_rate.resolve_by_name", lambda *_: SimpleNamespace(head="scalar"))
    with pytest.raises(ConfigError, match="a reward model cannot generate text"):
        WinRate(against="nano", judge=None, prompts=4).check(Sampling(4, 1.0))


def test_reward_models_have_no_eval_model() -> None:
    data: Any = SimpleNamespace(
        spec=SimpleNamespace(context=9, completion_tokens=1, seed=0, kind="Preference"),
        chat_template=SimpleNamespace(tokenizer=None),
    )
    resolved: Any = SimpleNamespace(name="tiny")
    method: Any = SimpleNamespace(head="scalar")
    assert EvalModelFactory(resolved, data)(method) is None
