"""selection.py and stats.py: selected rows and statistics against worked numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from postrain.config import tree
from postrain.config.check import check
from postrain.config.tree import instantiate
from postrain.data.conversation import tools_of
from postrain.data.formats import parse
from postrain.data.kinds.prompt import Prompt
from postrain.data.records import convert
from postrain.errors import ConfigError
from postrain.generation.config import GenerateConfig
from postrain.generation.selection import NoRows, PreferencePairs, PromptCompletions, RevisionPairs, Selection, TopK
from postrain.generation.stats import compute_stats
from postrain.rollout.revise import Revision
from tests.data.helpers import table
from tests.data.test_tool_calls import TOOL
from tests.generation.small_generation import composed
from tests.training_runs import CONF

FOUR = PromptCompletions(
    row=7,
    prompt="1 + 2 = ?",
    columns={"answer": "3", "label": "not mine", "kto_tag": True, "weight": 0, "chosen_messages": []},
    completions=(" 3.", " 4.", " It is 3.", " 3."),
    rewards=(1.0, 0.0, 1.0, 1.0),
    finished=(True, True, True, True),
    gold=(0.9, 0.1, 1.0, 0.9),
    greedy=None,
)
# One of the four revisions equals its completion.
REVISED = tuple(
    Revision("1 + 2 = ?", completion, "Short.", " It is 3.", "Sentences.") for completion in FOUR.completions
)
ROW = {"prompt": "1 + 2 = ?", "reward": 1.0, "row": 7, "answer": "3"}


def selected(selection: TopK, answers: PromptCompletions) -> list[str]:
    return [row["completion"] for row in selection(answers)]


def test_top_k_deduplicates_and_drops_layout_columns():
    selection = TopK(count=None, min_reward=1.0, unique=True)
    assert selection(FOUR) == [{**ROW, "completion": " 3."}, {**ROW, "completion": " It is 3."}]
    assert selected(replace(selection, unique=False), FOUR) == [" 3.", " It is 3.", " 3."]


def test_top_k_sorts_by_reward_with_stable_ties():
    answers = replace(FOUR, rewards=(0.5, 0.2, 0.9, None))
    assert selected(TopK(count=1, min_reward=None, unique=True), answers) == [" It is 3."]
    assert selected(TopK(count=2, min_reward=None, unique=True), answers) == [" It is 3.", " 3."]
    assert selected(TopK(count=None, min_reward=None, unique=True), answers) == [" It is 3.", " 3.", " 4."]
    assert selected(TopK(count=1, min_reward=None, unique=True), FOUR) == [" 3."]


def test_truncated_and_unscorable_completions_are_not_selected():
    answers = replace(FOUR, rewards=(1.0, None, 1.0, None), finished=(False, True, True, True))
    assert selected(TopK(count=None, min_reward=None, unique=False), answers) == [" It is 3."]


def test_minimum_reward_tolerates_float32_rounding():
    answers = replace(FOUR, rewards=(0.9999999, 0.0, 0.0, 0.0))
    assert selected(TopK(count=None, min_reward=1.0, unique=True), answers) == [" 3."]


def test_preference_pair_is_best_over_worst_with_margin():
    answers = replace(FOUR, rewards=(0.5, 0.25, 0.75, None))
    pair = {"prompt": "1 + 2 = ?", "chosen": " It is 3.", "rejected": " 4.", "margin": 0.5, "row": 7, "answer": "3"}
    assert PreferencePairs(margin=0.5)(answers) == [pair]
    assert PreferencePairs(margin=0.51)(answers) == []
    assert PreferencePairs(margin=0.1)(replace(FOUR, completions=(" 3.",) * 4)) == []
    assert PreferencePairs(margin=0.1)(replace(FOUR, rewards=(None,) * 4)) == []


def test_revision_pair_prefers_the_revision_and_has_the_critique():
    selection = RevisionPairs()
    found = selection(replace(FOUR, rewards=(None,) * 4, revisions=REVISED))
    why = {"critique": "Short.", "principle": "Sentences.", "row": 7, "answer": "3"}
    pairs = [(" It is 3.", " 3."), (" It is 3.", " 4."), (" It is 3.", " 3.")]
    assert found == [{"prompt": "1 + 2 = ?", "chosen": new, "rejected": old, **why} for new, old in pairs]
    with pytest.raises(ConfigError, match="have no revisions"):
        selection(FOUR)


def test_multi_turn_prompt_keeps_its_turns():
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "1 + 2?"},
    ]
    answers = replace(FOUR, columns={"messages": turns})
    (row,) = TopK(count=1, min_reward=None, unique=True)(answers)
    assert row == {"messages": [*turns, {"role": "assistant", "content": " 3."}], "reward": 1.0, "row": 7}
    (pair,) = PreferencePairs(margin=1.0)(answers)
    assert pair["prompt"] == turns
    assert NoRows()(answers) == []


def test_stats_are_means_over_prompts():
    # Correct: 3 of 4, 0 of 1 (three are unscorable), 4 of 4; the fourth prompt has no score and is left out.
    none = (None, None, None, None)
    answers = [
        FOUR,
        replace(FOUR, rewards=(0.0, None, None, None), gold=(0.2, 0.5, 0.5, 0.5), greedy=0.0),
        replace(FOUR, rewards=(1.0, 1.0, 1.0, 1.0), finished=(True, False, True, True), greedy=1.0),
        replace(FOUR, rewards=none, gold=none),
    ]
    found = compute_stats(answers, threshold=1.0)
    assert found.sampled is not None
    assert found.solved is not None
    assert found.greedy is not None
    # pass@1: (3/4 + 0 + 1) / 3; pass@n: 2 of 3 prompts; greedy: 1 of 2 greedy completions.
    assert (found.sampled.value, found.solved.value, found.greedy.value) == pytest.approx((1.75 / 3, 2 / 3, 1 / 2))
    # Rewards 3 + 0 + 4 over 4 + 1 + 4 scored; best of each prompt 1, 0, 1; 15 of 16 finished.
    assert (found.reward, found.best, found.finished) == pytest.approx((7 / 9, 2 / 3, 15 / 16))
    # Gold of the best: 0.9 (the first of the correct ones), 0.2, 0.9.
    assert found.gold_of_best == pytest.approx(2.0 / 3)
    assert (found.prompts, found.samples, found.unscorable) == (4, 4, 1)
    assert compute_stats(answers, threshold=0.0).solved == compute_stats(answers, threshold=-1.0).solved


@pytest.mark.parametrize("count", [1, 4])
def test_interval_of_equal_prompts_is_not_of_width_0(count):
    found = compute_stats([replace(FOUR, rewards=(1.0,) * 4)] * count, threshold=1.0).sampled
    assert found is not None
    # Wilson's: n / (n + z²) … 1
    assert (found.low, found.high) == pytest.approx((count / (count + 1.96**2), 1.0), abs=1e-4)


def test_stats_without_scored_completions_are_none():
    found = compute_stats([replace(FOUR, rewards=(None,) * 4, gold=(None,) * 4)], threshold=1.0)
    assert (found.reward, found.best, found.gold, found.gold_of_best, found.sampled, found.solved) == (None,) * 6


@pytest.mark.parametrize("option", sorted(path.stem for path in (CONF / "selection").glob("*.yaml")))
def test_every_selection_option_works(option):
    config = composed(f"selection={option}")
    assert (config.get("reward") is None) == (option in ("revisions", "revised", "ai_preferences"))
    check(config, GenerateConfig)
    rows = instantiate(config["selection"])(replace(FOUR, revisions=REVISED, win_rates=(0.5, 0.25, 0.75, None)))
    sizes = {"none": 0, "all": 3, "all_correct": 2, "best": 1, "top_k": 3, "preferences": 1}
    sizes |= {"revisions": 3, "revised": 3, "ai_preferences": 1}
    assert len(rows) == sizes[option]
    assert (CONF / "selection" / f"{option}.yaml").read_text().startswith("# ")


def test_unfinished_assistant_turn_is_continued_not_learned():
    turns = [{"role": "user", "content": "1 + 2 = ?"}, {"role": "assistant", "content": "It is"}]
    kept = TopK(count=1, min_reward=None, unique=True)(replace(FOUR, columns={"messages": turns}))
    assert kept == [{"prompt": turns, "completion": " 3.", "reward": 1.0, "row": 7}]


@pytest.mark.parametrize("selection", [TopK(), PreferencePairs()])
def test_rows_of_a_prompt_with_tools_declare_them_and_keep_the_expected_calls(selection: Selection):
    call = {"name": "add", "arguments": {"x": 1}}
    turns = [{"role": "system", "content": "Short."}, {"role": "user", "content": "1 + 2 = ?"}]
    columns = {"tools": [TOOL], "tool_calls": [call]}
    for answers in (replace(FOUR, columns=columns), replace(FOUR, columns={**columns, "messages": turns})):
        row = selection(answers)[0]
        assert (row["tools"], row["tool_calls"]) == ([TOOL], [call])
        (record,) = convert(parse(table([row]), {}).records, "Prompt", source="rows").records
        assert isinstance(record, Prompt)
        assert tools_of(record.prompt) == [TOOL]
        assert record.columns["tool_calls"] == [call]
    # Without tools the column would be refused.
    assert "tool_calls" not in selection(replace(FOUR, columns={"tool_calls": [call]}))[0]


def test_episodes_of_an_environment_are_refused_as_data():
    with pytest.raises(ConfigError, match=r"environment: rows of data would train on .* choose selection=none"):
        tree.parse(composed("environment=guess_number", "selection=all"), GenerateConfig)
    tree.parse(composed("environment=guess_number", "selection=none"), GenerateConfig)
