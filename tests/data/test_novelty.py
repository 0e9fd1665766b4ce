"""novelty.py: ROUGE-L, the novelty filter and diversity by hand."""

import pytest

from postrain.data.novelty import Novelty, diversity, rouge_l

CAT = ["the", "cat", "sat", "on", "the", "mat"]


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # "the cat on the mat" is common: 2 * 5 / (6 + 7).
    assert rouge_l(CAT, ["the", "black", "cat", "lay", "on", "the", "mat"]) == pytest.approx(10 / 13)
    # In reverse order only "the .. the" is common: 2 * 2 / 12 (or "the x the": length 3 does not exist).
    assert rouge_l(CAT, CAT[::-1]) == pytest.approx(2 * 3 / 12)
    assert (rouge_l(CAT, CAT), rouge_l(CAT, []), rouge_l(CAT, ["dog"])) == (1.0, 0.0, 0.0)


def test_text_is_novel_below_the_limit_with_every_known_text():
    # 2 * 4 / (5 + 5) = 0.8 with the first, 2 * 1 / (5 + 2) with the second.
    known = ("Name four red fruits now.", "Name colours.")
    text = "name FOUR green fruits now"
    assert not Novelty(0.8, known).is_novel(text)
    assert Novelty(0.81, known).is_novel(text)
    assert Novelty(0.7, known[1:]).is_novel(text)


def test_diversity_of_three_texts():
    found = diversity(["A b c.", "a b d", "e f"])
    # Words a b c a b d e f: 6 of 8; bigrams ab bc ab bd ef: 4 of 5; trigrams 2 of 2; ROUGE-L 2 * 2 / 6, 0, 0.
    assert (found["distinct_1"], found["distinct_2"], found["distinct_3"]) == pytest.approx((6 / 8, 4 / 5, 1.0))
    assert found["mean_rouge_l"] == pytest.approx(2 / 9)
    assert (found["median_words"], found["min_words"], found["max_words"]) == (3, 2, 3)
