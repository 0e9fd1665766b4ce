"""Gold scores against numbers computed by hand; references score 1 in every part."""

from __future__ import annotations

import pytest

from postrain.world import rows, score
from postrain.world.gold import mood
from postrain.world.items import Split, generator
from postrain.world.lexicon import BAD_WORDS, CREATURES, GOOD_WORDS, MOVES, NAMES, PLACES, THINGS, TIMES
from postrain.world.rows import DESIRABLE_THRESHOLD, TASKS_BY_KIND, Task
from postrain.world.stories import ENDINGS, EVENTS, gold_spec
from postrain.world.sums import chain, chain_with_slip, draw, expression, flawed_chain, labels, terms_of, total
from postrain.world.sums import gold_spec as sum_gold

FACT = {
    "weights": {"correct": 0.5, "format": 0.15, "polite": 0.15, "non_repetition": 0.1, "concise": 0.1},
    "correct": {"type": "word", "accept": "green", "reject": ["red", "blue"]},
    "format": {"type": "sentences", "low": 1, "high": 3},
    "polite": {"courtesy": True},
    "non_repetition": {},
    "concise": {"words": 20},
}


@pytest.mark.parametrize("task", TASKS_BY_KIND["demonstrations"])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_every_reference_has_gold_score_one_in_every_part(task: Task, split: Split) -> None:
    for row in rows("demonstrations", task=task, count=600, seed=8, split=split):
        parts = score(row["prompt"], row["completion"], row["gold"])
        assert parts == pytest.approx(dict.fromkeys(parts, 1.0)), row


@pytest.mark.parametrize("task", TASKS_BY_KIND["demonstrations"])
def test_weights_sum_to_one_and_scores_are_in_bounds(task: Task) -> None:
    for row in rows("unpaired_preferences", task=task, count=200, seed=9, split="train"):
        assert sum(row["gold"]["weights"].values()) == pytest.approx(1.0)
        for text in (row["completion"], "", "?", "a" * 50, "5 " * 50):
            assert all(0 <= part <= 1 for part in score(row["prompt"], text, row["gold"]).values())


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ("Sure. Grass is green.", {"correct": 1, "format": 1, "polite": 1, "total": 1}),
        ("Grass is green.", {"polite": 0.5, "total": 1 - 0.15 / 2}),
        ("Sure. Grass is red.", {"correct": 0, "total": 0.5}),
        ("Sure. Grass is green or red.", {"correct": 0}),
        ("sure. grass is green", {"format": 0, "total": 1 - 0.15}),
        ("What a stupid question. Grass is green.", {"polite": 0, "total": 1 - 0.15}),
        # Two of three sentences are new; one four-word run of "sure grass is green grass is green" occurs twice among
        # four: grass-is-green-grass, is-green-grass-is, ... are all new, so only the sentences count.
        ("Sure. Grass is green. Grass is green.", {"non_repetition": 2 / 3, "total": 1 - 0.1 / 3}),
        # 40 words against a limit of 20.
        ("Sure. " + "green " * 39, {"concise": 0.5}),
    ],
)
def test_parts_of_the_gold_score_of_a_fact(completion: str, parts: dict[str, float]) -> None:
    found = score("What colour is grass?", completion, FACT)
    assert {part: found[part] for part in parts} == pytest.approx(parts)


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        (" 3 + 4 = 7. 7 + 2 = 9. The answer is 9.", {"correct": 1, "steps": 1, "format": 1, "total": 1}),
        # The answer without steps: right, but none of the two steps.
        (" The answer is 9.", {"correct": 1, "steps": 0, "total": 0.8}),
        # One true equation of two, wrong answer: 0.2 · ½ + 0.1 + 0.1.
        (" 3 + 4 = 7. 7 + 2 = 8. The answer is 8.", {"correct": 0, "steps": 0.5, "total": 0.3}),
        # No closing sentence: the last number counts, the format does not.
        (" 3 + 4 = 7. 7 + 2 = 9.", {"correct": 1, "format": 0, "total": 0.9}),
        # Three equations instead of two: spurious ones lower the share.
        (" 1 + 1 = 3. 3 + 4 = 7. 7 + 2 = 9. The answer is 9.", {"steps": 2 / 3}),
    ],
)
def test_parts_of_the_gold_score_of_a_sum(completion: str, parts: dict[str, float]) -> None:
    found = score("3 + 4 + 2 = ?", completion, sum_gold(9, 2))
    assert {part: found[part] for part in parts} == pytest.approx(parts)


def test_chain_and_step_labels_with_and_without_a_slip() -> None:
    terms = (3, 4, -2)
    assert chain(terms) == ("3 + 4 = 7.", "7 - 2 = 5.", "The answer is 5.")
    assert chain(terms, (1, 0)) == ("3 + 4 = 8.", "8 - 2 = 6.", "The answer is 6.")
    assert labels(chain(terms), chain(terms, (1, 0))) == [False, False, False]
    assert labels(chain(terms), chain(terms, (0, 1))) == [True, False, False]


def test_step_labels_are_false_from_the_first_mistake() -> None:
    right = chain((3, 4, -2))
    assert labels(right, ("3 - 2 = 1.", "The answer is 1.")) == [False, False]
    assert labels(right, ("3 + 4 = 7.", "The answer is 7.")) == [True, False]
    # An early right answer is labelled right; after a mistake it is labelled wrong.
    assert labels(right, ("The answer is 5.",)) == [True]
    assert labels(right, ("3 + 4 = 8.", "7 - 2 = 5.", "The answer is 5.")) == [False, False, False]


def test_flawed_chains_cover_every_kind_of_error() -> None:
    rng = generator("flawed")
    found = {flawed_chain(rng, (3, 4, -2, 6)) for _ in range(3000)}
    assert ("3 + 4 = 7.", "7 - 2 = 5.", "The answer is 5.") in found  # answered before the last step
    assert ("The answer is 12.",) in found  # a guess, off by one
    assert ("3 - 2 = 1.", "1 + 6 = 7.", "The answer is 7.") in found  # a number left out
    assert ("3 + 4 = 7.", "7 - 2 = 6.", "6 + 6 = 12.", "The answer is 12.") in found  # arithmetic
    assert chain((3, 4, -2, 6)) not in found


def test_terms_of_inverts_expression() -> None:
    assert terms_of(expression((12, -3, 4))) == (12, -3, 4)


def test_chain_with_slip_has_a_wrong_answer() -> None:
    rng = generator("slips")
    for _ in range(300):
        terms = draw(rng)
        assert chain_with_slip(rng, terms)[-1] != f"The answer is {total(terms)}."


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Tim went home.", 0.5),
        ("Tim was happy.", 0.5 + 1 / 8),
        ("happy happy happy happy happy", 0.5 + 1 / 8),  # a repeated word counts once
        ("happy glad kind", 0.5 + 3 / 8),
        ("happy glad kind proud warm", 1.0),  # saturates at four
        ("happy but sad", 0.5),
        ("sad cold wet lost", 0.0),
    ],
)
def test_mood_is_half_plus_an_eighth_per_different_mood_word(text: str, value: float) -> None:
    assert mood(text) == pytest.approx(value)


def test_repeated_mood_word_scores_below_a_story() -> None:
    prompt = "One day, Tim the fox went to the park."
    story = score(prompt, " A kind owl gave Tim a gift. Tim was happy and proud.", gold_spec("good"))
    repeated = score(prompt, " Happy happy happy happy happy happy.", gold_spec("good"))
    assert story["total"] == pytest.approx(1.0)
    assert repeated["total"] < 0.7
    assert repeated["non_repetition"] < 0.5


def test_sentence_of_the_prompt_counts_as_repetition() -> None:
    prompt = "One day, Tim the fox went to the park."
    assert score(prompt, " " + prompt, gold_spec("good"))["non_repetition"] == 0.0


def test_openings_and_neutral_lines_have_no_mood() -> None:
    neutral = " ".join((*NAMES, *CREATURES, *PLACES, *THINGS, *TIMES, *MOVES, *EVENTS["neutral"], *ENDINGS["neutral"]))
    assert mood(neutral) == 0.5
    assert not GOOD_WORDS & BAD_WORDS
    assert all(mood(line) > 0.5 for line in EVENTS["good"] + ENDINGS["good"])
    assert all(mood(line) < 0.5 for line in EVENTS["bad"] + ENDINGS["bad"])


def test_running_text_has_as_many_good_stories_as_bad_ones() -> None:
    moods = [mood(row["text"]) for row in rows("text", task="stories", count=1500, seed=10, split="train")]
    for side in (sum(m > 0.5 for m in moods), sum(m < 0.5 for m in moods)):
        assert 0.40 < side / len(moods) < 0.50  # 0.45 ± 4 standard deviations of 0.013


def test_desirable_labels_follow_the_gold_score() -> None:
    found = rows("unpaired_preferences", task="instructions", count=1000, seed=11, split="train")
    gold = [score(row["prompt"], row["completion"], row["gold"])["total"] for row in found]
    above = [row["label"] for row, value in zip(found, gold, strict=True) if value > DESIRABLE_THRESHOLD]
    below = [row["label"] for row, value in zip(found, gold, strict=True) if value < DESIRABLE_THRESHOLD]
    assert sum(above) / len(above) > 0.7
    assert sum(below) / len(below) < 0.3
