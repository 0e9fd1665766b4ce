"""Decontamination: n-gram overlap of training rows with the prompts of a benchmark."""

from __future__ import annotations

import pytest

from postrain.data.decontaminate import MOST_SHARED, benchmark, decontaminate
from postrain.data.kinds.text import Text
from postrain.errors import ConfigError
from tests.data.helpers import write_lines
from tests.data.modules import DEMONSTRATIONS, prepared

QUESTION = "a b c d e f g h i j"  # ten words


@pytest.mark.parametrize(
    ("text", "overlap", "dropped"),
    [
        # Two 4-grams, a b c d and b c d e, cover 5 of 10 words.
        ("x a b c d e y", 0.5, True),
        ("x a b c d e y", 0.51, False),
        ("x A, b; c (d) y", 0.4, True),  # case and punctuation do not count
        ("x a b c y", 0.0, False),  # no common 4-gram
        ("x a b c d y", 0.0, True),  # overlap 0: any common 4-gram
        ("a b c d y e f g h", 0.8, True),  # 8 of 10 words in two places
        ("j i h g f e d c b a", 0.0, False),
    ],
)
def test_row_is_dropped_at_the_overlap_of_ngrams(text, overlap, dropped):
    found = decontaminate([Text(row=1, text=text)], [benchmark("bench", [QUESTION], ngram=4, overlap=overlap)])
    assert len(found.records) == (0 if dropped else 1)
    assert found.dropped == ({"overlaps bench": 1} if dropped else {})


def test_prompt_shorter_than_the_ngram_matches_only_an_equal_prompt():
    short = benchmark("bench", ["2 + 2 = ?"], ngram=4, overlap=0.5)
    rows = [Text(row=row, text=text) for row, text in enumerate(["2 + 2 =", "We know that 2 + 2 = 4."])]
    assert [record.row for record in decontaminate(rows, [short]).records] == [1]


def test_instructions_that_a_benchmark_repeats_do_not_count():
    prompts = [f"answer with one word only please question {n} {n} {n} {n}" for n in range(MOST_SHARED + 1)]
    shared = benchmark("bench", prompts, ngram=4, overlap=0.5)
    texts = ["answer with one word only please who are you", "question 3 3 3 3"]
    kept = decontaminate([Text(row=row, text=text) for row, text in enumerate(texts)], [shared])
    assert [record.row for record in kept.records] == [0]
    assert kept.prompts == {"bench": {3}}


def test_audit_counts_contaminated_rows_and_prompts(tmp_path):
    benchmarks = write_lines(
        tmp_path / "bench.jsonl", [{"question": QUESTION, "answer": "k"}, {"question": "z", "answer": "y"}]
    )
    rows = [*DEMONSTRATIONS, {"prompt": f"Say: {QUESTION}", "completion": "k"}, {"prompt": "q", "completion": QUESTION}]
    path = f"data.path={write_lines(tmp_path / 'rows.jsonl', rows)}"
    held_out = f"data.eval_path={write_lines(tmp_path / 'eval.jsonl', [{'prompt': QUESTION, 'completion': 'k'}])}"
    data = prepared("jsonl", path, held_out, f"data.decontaminate={benchmarks}")
    assert data.audit.dropped == {"overlaps bench.jsonl": 2}
    assert (data.audit.rows_train, data.audit.rows_eval) == (30, 1)
    assert "1 of 2 prompts of bench.jsonl in 2 rows" in data.audit.render()
    with pytest.raises(
        ConfigError, match=r"data\.decontaminate: there is no file and no data option gsm9k; did you me"
    ):
        prepared("jsonl", path, f"data.decontaminate=[{benchmarks},gsm9k]")
