"""text.py: verifiable rewards on text, with known scores."""

from __future__ import annotations

import pytest

from postrain.errors import ConfigError
from postrain.rewards.text import answer, bare, exact, finds, length, matches, non_repetition, numeric, tagged


def test_exact_ignores_case_and_reads_the_marked_answer() -> None:
    assert exact([" Paris\n", "paris!", "x"], ["paris", "Paris", None]) == [1.0, 0.0, None]
    assert exact(["So <answer> Paris</answer>.", "", "12"], ["Paris", "Paris", 12]) == [1.0, 0.0, 1.0]


def test_numeric_compares_the_last_number_by_value() -> None:
    completions = ["so 3 + 4 = 7.00", "8, no: 7", "7 or 8", "seven"]
    assert numeric(completions, ["#### 7", 7, "7", "7"]) == [1.0, 1.0, 0.0, 0.0]
    assert numeric(["7", "7"], [None, "seven"]) == [None, None]


def test_numeric_prefers_the_marked_answer_to_the_last_number() -> None:
    completions = ["\\boxed{72}, after 3 hours", "<answer>72</answer> 3", "9 - 2\n#### 72\n3", "\\boxed{3} 72"]
    assert numeric(completions, ["72"] * 4) == [1.0, 1.0, 1.0, 0.0]
    assert numeric(["72"], ["He sold 48 / 2 = 24, 48 + 24.\n#### 72"]) == [1.0]


def test_answer_compares_numbers_by_value_and_other_answers_as_text() -> None:
    assert answer(["so 3 + 4 = 7.00", "8", "7"], ["7", 7, None]) == [1.0, 0.0, None]
    completions = ["Positive.", " **positive** ", "It is positive", "<answer>Positive</answer>!", ""]
    assert answer(completions, ["positive"] * 5) == [1.0, 1.0, 0.0, 1.0, 0.0]
    assert answer(["(b)", "C"], ["B", "B"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("completion", "expected", "score"),
    [
        (r"\boxed{\frac{1}{4}}", r"\frac{3}{4}", 0),
        (r"\boxed{\dfrac34}", r"\frac{3}{4}", 1),
        ("It is 0.75.", "3/4", 1),
        (r"\boxed{\frac{1}{7}}", "7", 0),
        (r"\boxed{-\frac{3}{4}}", "-0.75", 1),
        (r"\boxed{(9, 2)}", "(1, 2)", 0),
        (r"\boxed{(1, 2)}", "(1, 2)", 1),
        (r"\boxed{(9, 2)}", "2", 0),
        ("<answer>2024-01-05</answer>", "2023-12-05", 0),
        (r"\boxed{-2\sqrt{3}}", r"5\sqrt{3}", 0),
        (r"\boxed{5\sqrt{3}}", r"5\sqrt{3}", 1),
        (r"\boxed{x + y = 4}", "x^2 + y^2 = 4", 0),
        (r"\boxed{x = 5}", "5", 1),
        ("<answer>48 + 24 = 72</answer>", "72", 1),
        ("So 7.", "1/0", 0),
        (r"\boxed{x-\frac{3}{4}}", "-0.75", 0),
        (r"\boxed{x \approx 72}", "72", 1),
        (r"\boxed{72 \approx 73}", "72", 0),
        (r"\boxed{x \approx 72 + y}", "72", 0),
        (r"\boxed{72 \sim 73}", "72", 0),
        (r"\boxed{\not\approx 72}", "72", 0),
        (r"\boxed{\ncong 72}", "72", 0),
        (r"\boxed{≉72}", "72", 0),
        (r"\boxed{\frac{3}{-4}}", "0.75", 0),
        # not -(1 + 3/4)
        (r"\boxed{1\frac{3}{-4}}", "-1.75", 0),
    ],
)
def test_answer_of_several_numbers_is_not_compared_by_its_last(completion: str, expected: str, score: float) -> None:
    assert answer([completion], [expected]) == [score]


@pytest.mark.parametrize(
    "expected", ["72", 72, 72.0, "$72", "\\$72.00", "72 apples", "72.", "+72 km/h", "72\\%", "#### 72"]
)
def test_answer_of_one_number_is_compared_by_value(expected: str | float) -> None:
    completions = ["48 + 24 = 72", "\\boxed{72}", "<answer>$72.00</answer>", "#### 72", "\\boxed{72\\text{ km}}", "73"]
    assert answer(completions, [expected] * 6) == [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert answer(["It costs -$1,200.", "#### 1,200", "1{,}200"], ["-1200", "1,200", "1,200 dollars"]) == [1.0] * 3


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        (r"<answer>\boxed{72}</answer>", "72"),
        ("<answer>**72**</answer>", "72"),
        ("<answer>**72**.</answer>", "72"),
        (r"<answer>\boxed{B}</answer>", "B"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{\textbf{(B)}}", "B"),
        ("b)", "B"),
        (r"\boxed{\text{yes}}", "yes"),
        ("“Paris.”", "Paris"),
        (r"\boxed{\frac{-3}{4}}", "-3/4"),
        (r"\boxed{-\frac{-3}{4}}", "3/4"),
        (r"\boxed{\frac{3}{-4}}", "-3/4"),
        (r"\boxed{\dfrac{-3}{- 4}}", "0.75"),
        (r"\boxed{-\frac{3}{-4}}", "0.75"),
        (r"\boxed{3/-4}", "-0.75"),
        ("-0.75", r"\cfrac{3}{-4}"),
        (r"\boxed{\approx 72}", "72"),
        (r"so $x\approx72$.", "72"),
        (r"\boxed{\simeq -\frac{3}{4}}", "-0.75"),
        ("72", r"$\approx 72$"),
        (r"\boxed{x \sim72}", "72"),
        (r"\boxed{\cong 72}", "72"),
        (r"\boxed{\frac 34}", "3/4"),
        (r"\boxed{\frac{3}4}", "3/4"),
        # 1 + 1/2
        (r"\boxed{1\frac{1}{2}}", "3/2"),
        (r"\boxed{-1 \frac12}", "-1.5"),
        (r"\boxed{\frac{\sqrt{3}}{2}}", r"\dfrac{\sqrt{3}}{2}"),
        (r"\boxed{25\text{ cm}^2}", "25"),
        ("The area is 25 cm^2.", "25"),
        (r"\boxed{72\,000}", "72000"),
        (r"\boxed{6.02 \times 10^{23}}", "6.02e23"),
        ("It has 6.02 x 10^23 atoms.", "6.02e23"),
        (r"\boxed{(1, 2)}", "(1,2)"),
    ],
)
def test_markup_does_not_change_an_answer(completion: str, expected: str) -> None:
    assert answer([completion], [expected]) == [1.0]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (r"\sqrt{2}", r"-\sqrt{2}"),
        (r"2\pi", r"-2\pi"),
        ("x", "-x"),
        ("[1,2]", "(1,2)"),
        ("<", ">"),
        ("C", "C++"),
        ("n!", "n"),
        ("-x", "x"),
        ("- x", "x"),
        ("C#", "C"),
        ("f'", "f"),
        (r"\leftarrow", r"\rightarrow"),
        ("2x^3", "2x^2"),
    ],
)
def test_symbols_around_an_answer_are_part_of_it(given: str, expected: str) -> None:
    assert answer([rf"\boxed{{{given}}}"] * 2, [expected, given]) == [0.0, 1.0]


@pytest.mark.parametrize(
    "wrapped",
    [
        "- {}",
        "* {}",
        "> {}",
        "=> {}",
        "-> {}",
        "# {}",
        "## {}",
        ": {}",
        "...{}…",
        "({})",
        "({}).",
        "[{}]",
        "<{}>",
        "_{}_",
        "__{}__",
        "**{}",
        "**{}**.",
        '"{}',
        '{}"',
        '{}."',
        "'{}'",
        "{}?!",
        "{}!",
        "`{}`",
    ],
)
def test_wrapper_of_a_label_does_not_count(wrapped: str) -> None:
    labels = ("yes", "very positive", "iv", "twenty-one", "don't know")
    assert answer([wrapped.format(label) for label in labels], labels) == [1.0] * 5
    assert answer([wrapped.format("no")], ["yes"]) == [0.0]
    assert bare(wrapped.format("New York")) == "new york"


@pytest.mark.parametrize("option", ["(B)", "B)", "[B]", "<B>", "- B", "**B**", "B."])
def test_wrapper_of_an_option_letter_does_not_count(option: str) -> None:
    assert answer([option] * 2, ["B", "C"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("given", "expected", "score"),
    [
        ("5", "5m^2", 0),
        ("3", "3m^2", 0),
        ("3m^3", "3m^2", 0),
        ("5m^2", "5", 0),
        (r"5\text{x}^2", "5", 0),
        (r"25\text{ cm}^3", r"25 \text{ cm}^2", 0),
        ("25 cm³", "25 cm^2", 0),
        ("25 cm²", "25 cm^2", 1),
        (r"25\ \mathrm{~m}^{2}", "25", 1),
        ("25", r"25\text{ cm}^2", 1),
        (r"25\text{ cm}^2", r"25 \text{ cm}^2", 1),
    ],
)
def test_power_belongs_to_a_variable_or_a_unit(given: str, expected: str, score: float) -> None:
    assert answer([rf"\boxed{{{given}}}"], [expected]) == [score]


def test_mixed_number_does_not_cross_a_line() -> None:
    # 3 and 1/2 are two numbers, 3 1/2 is 3.5
    assert answer(["We get 3\n\\frac{1}{2}", "We get 3 \\frac{1}{2}"], ["0.5", "3.5"]) == [1.0, 1.0]


def test_list_of_answers_accepts_each_and_a_blank_answer_is_unscorable() -> None:
    spellings = ["5", "five"]
    assert answer(["It is 5.", "Five!", "6"], [spellings] * 3) == [1.0, 1.0, 0.0]
    assert exact(["five", "5", "fiv"], [spellings] * 3) == [1.0, 1.0, 0.0]
    assert numeric(["so 5.0", "6"], [spellings] * 2) == [1.0, 0.0]
    for reward in (answer, exact, numeric):
        assert reward(["a", "a", "a", "nan"], ["", " ", [], float("nan")]) == [None] * 4


def test_comparison_of_a_long_answer_takes_linear_time() -> None:
    # a search for the end at each character would take 10⁸ steps
    for text in (
        " " * 20_000 + "x",
        "." * 20_000 + "x",
        "*" * 20_000,
        "[" * 20_000,
        "1 " * 9_000,
        r"\frac{" * 5_000,
        r"\frac{" + " " * 20_000,
    ):
        assert answer([text], ["yes"]) == [0.0]


def test_length_falls_linearly_from_the_target() -> None:
    # target of 4 words: 4 → 1, 2 → 1 - 2/4, 8 → 0, 20 → 0
    assert length(["a b c d", "a b", "a " * 8, "a " * 20], words=4) == [1.0, 0.5, 0.0, 0.0]
    with pytest.raises(ConfigError, match=r"reward.arguments.words"):
        length(["a"], words=0)


def test_matches_needs_the_whole_text_and_finds_a_part() -> None:
    assert matches([" <b>1\n2</b> ", "<b>1</b> more"], pattern="<b>.*</b>") == [1.0, 0.0]
    assert finds(["say <b>1</b> more", "b"], pattern="<b>.*</b>") == [1.0, 0.0]
    for reward in (matches, finds):
        with pytest.raises(ConfigError, match="not a regular expression"):
            reward(["a"], pattern="(")


@pytest.mark.parametrize(
    ("completion", "opened", "score"),
    [
        ("<think>a\nb</think>\n<answer>c</answer>\n", False, 1.0),
        ("a</think><answer>c</answer>", True, 1.0),
        ("a</think><answer>c</answer>", False, 0.0),
        ("<think> </think><answer>c</answer>", False, 0.0),  # empty thought
        ("<answer>c</answer><think>a</think>", False, 0.0),  # wrong order
        ("<think>a</think><answer>1</answer><answer>2</answer>", False, 0.0),  # two guesses
        ("<think>a<think>b</think><answer>c</answer>", False, 0.0),
        ("<think>a</think><answer>c</answer> and more", False, 0.0),
        ("<think>a</think><answer>c", False, 0.0),  # truncated
    ],
)
def test_tagged_requires_each_tag_once_in_order(completion: str, opened: bool, score: float) -> None:
    assert tagged([completion], tags=["think", "answer"], opened=opened) == [score]


def test_tags_must_be_a_list() -> None:
    with pytest.raises(ConfigError, match=r"reward.arguments.tags: expected a list of names .*, got 'think'"):
        tagged(["a"], tags="think")


def test_non_repetition_is_the_share_of_new_ngrams() -> None:
    # "a b a b": bigrams ab ba ab → 2 of 3
    assert non_repetition(["a b c", "a b a b", ""]) == [1.0, pytest.approx(2 / 3), 1.0]
