"""Fluency: text of the world is accepted, broken language is not and has gold score 0."""

from __future__ import annotations

import random

import pytest

from postrain.world import rows, score
from postrain.world.fluency import FORMS, STYLE, fluency
from postrain.world.gold import sentences
from postrain.world.items import generator
from postrain.world.lexicon import ADJECTIVES, GOOD_WORDS
from postrain.world.rows import Task
from postrain.world.stories import gold_spec

STORY = "A kind owl gave Tim a gift. They shared a sweet and tasty cake. Tim was happy and proud."


@pytest.mark.parametrize("task", ["stories", "sums"])
def test_running_text_of_the_world_is_fluent(task: Task) -> None:
    forms = {"stories": "story", "sums": "calculation"}[task]
    for row in rows("text", task=task, count=300, seed=3, split="eval"):
        text = row["text"].rpartition("? ")[2]  # sums begin with a question
        assert fluency(text, forms) == 1.0, text


@pytest.mark.parametrize(
    "text",
    [
        "Jack laughediled so much. Jack wentny game.",  # written by a policy after language collapse
        "The sunave horse walked nice mouse sang a cheerful song.",
        "They sh gameft. A kind goat gave plums gi nice pig gift.",
        "Happy glad kind proud warm golden friends.",  # word salad
        "happy happy happy happy happy",  # one word
        "Tim Tim Tim.",
        "Tim. Owl. Happy. Gift.",
        "Ball the found Jack shiny a. Happy was proud and Tim.",  # words in another order
        "Was happy and proud. Found a shiny ball.",  # no subject
        "Tim a shiny ball.",  # no verb
        "Tim found a shiny ball A kind owl gave Tim a gift Tim was happy and proud",  # no marks
        "A kind owl gave Tim a gift.Tim was happy and proud.",  # no space
        "Tim was,, happy and. proud. Tim found; a ball..",
        "... ! ?",
        "",
        "   ",
        "Tim was happy and",  # cut
        "A kind owl ga",
        "A owl gave Tim a gift.",
        "Tim were happy.",
        "3 + 4 = 7. The answer is 7.",  # another task's form
        "\N{REPLACEMENT CHARACTER}Tim was happy.",
    ],
)
def test_broken_language_is_not_fluent(text: str) -> None:
    assert fluency(text, "story") <= 0.3
    assert score("One day, Mia the fox went to the park.", text, gold_spec("good"))["total"] <= 0.3


@pytest.mark.parametrize("forms", FORMS)
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_text_of_the_world_is_not_fluent(forms: str, seed: int) -> None:
    tasks: dict[str, Task] = {"story": "stories", "calculation": "sums", "chat": "facts"}
    row = rows("demonstrations", task=tasks[forms], count=1, seed=seed, split="eval")[0]
    words = row["completion"].replace(".", " .").split()
    random.Random(seed).shuffle(words)
    assert fluency(" ".join(words), forms) <= 0.3


def test_repeated_sentences_count_once() -> None:
    # One of four sentences is new.
    assert fluency("Tim was happy. " * 4, "story") == 1 / 4


def test_fluency_is_the_share_of_fluent_sentences() -> None:
    assert fluency(STORY, "story") == 1.0
    assert fluency(STORY + " Tim wentny game.", "story") == 3 / 4
    assert fluency(STORY.removesuffix(" and proud."), "story") == pytest.approx((2 + STYLE) / 3)


@pytest.mark.parametrize("text", ["tim was happy.", "Tim was happy", "tim was happy", "TIM WAS HAPPY!"])
def test_wrong_capitals_or_marks_get_partial_credit(text: str) -> None:
    assert fluency(text, "story") == STYLE


@pytest.mark.parametrize(
    "text",
    [
        "Mia smiled.",
        "In the end, all of them were best friends.",
        "An ugly bear gave Tim an old hat.",
        "The brave lion sang a song for Mia and Tim.",
        "They were very happy.",
        "What a lovely day!",
        "It was so much fun and joy.",
        "It was a funny game.",
    ],
)
def test_sentences_similar_to_templates_are_fluent(text: str) -> None:
    assert fluency(text, "story") == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Sure. The colour of grass is red.", 1.0),  # false, not broken
        ("What a stupid question. Grass green.", 1 / 2),
        ("Paris", 1.0),
        ("Paris. Rome. Cairo.", 0.0),
        ("red, blue, green.", 1.0),
        ("red, red, red.", 0.0),
        ("Of course. 3 + 4 = 7. The answer is 7.", 1.0),
        ("Of course. 3 + 4 = ite. The answer is 7.", 2 / 3),
        ("The result is -2. Have a nice day.", 1.0),
    ],
)
def test_fluency_of_chat_answers(text: str, value: float) -> None:
    assert fluency(text, "chat") == pytest.approx(value)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_gold_score_falls_with_broken_letters(share: float) -> None:
    rng = generator("letters", str(share))
    broken = "".join(rng.choice("aeinst") if rng.random() < share and one.isalpha() else one for one in STORY)
    assert len(sentences(broken)) == 3
    assert score("", broken, gold_spec("good"))["total"] < score("", STORY, gold_spec("good"))["total"] / 2


def test_gold_is_the_weighted_parts_times_fluency() -> None:
    found = score("", STORY + " Tim wentny game.", gold_spec("good"))
    parts = {part: found[part] for part in gold_spec("good")["weights"]}
    assert found["total"] == pytest.approx(
        0.75 * (0.6 * parts["mood"] + 0.2 * parts["non_repetition"] + 0.2 * parts["format"])
    )


def test_adjectives_are_unique_and_include_mood_words() -> None:
    assert len(set(ADJECTIVES)) == len(ADJECTIVES)
    assert len(set(ADJECTIVES) & GOOD_WORDS) > 20
