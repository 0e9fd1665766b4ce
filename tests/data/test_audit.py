"""The data audit before step 0: counts, and errors that stop a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from postrain.data.audit import Audit, count, show
from postrain.data.chat import Template
from postrain.data.encode import EncodedRow
from postrain.data.kinds.prompt import EncodedPrompt
from postrain.data.kinds.steps import EncodedSteps
from postrain.data.kinds.unpaired_preference import EncodedUnpairedPreference
from postrain.data.token_counts import TokenCounts, fingerprint
from postrain.errors import ConfigError
from tests.data.helpers import byte_tokenizer

TEMPLATE = Template(byte_tokenizer(pad="<|end|>"), mode="plain")
EOS = TEMPLATE.tokenizer.eos_token_id
BOS = TEMPLATE.tokenizer.bos_token_id


def row(ids: list[int], supervised: int, number: int = 1) -> EncodedRow:
    """An encoded row whose last `supervised` tokens are supervised."""
    mask = torch.arange(len(ids)) >= len(ids) - supervised
    return EncodedRow(number, torch.tensor(ids), mask)


def audit(items, held_out=(), kind: str = "Demonstration", packed: bool = False) -> Audit:
    counts = TokenCounts(TEMPLATE)
    assert [*counts.counted(items)] == [*items]
    return Audit(
        source="x.jsonl",
        kind=kind,
        packed=packed,
        template="plain",
        updates=60,
        batch_size=8,
        rows_read=9,
        rows_train=len(items),
        rows_eval=len(held_out),
        dropped={"duplicate": 2},
        repaired={},
        warned={},
        unused={"id": 9, "tag": 1, "[red]": 9},
        offered=(),
        cut={},
        samples="",
        **count(items, held_out, TEMPLATE, counts),
    )


def test_audit_counts_tokens_in_the_loss_end_tokens_and_lengths():
    # 3 + 5 + 4 = 12 tokens, of which 2 + 1 + 3 = 6 are supervised; two of three rows end with the end token.
    found = audit([row([7, 8, EOS], 2), row([7, 8, 9, 9, EOS], 1), row([7, 8, 9, 9], 3)])
    assert (found.tokens, found.supervised, found.supervised_min, found.supervised_mean) == (12, 6, 1, 2)
    assert found.ended == pytest.approx(2 / 3)
    assert found.lengths == {"p50": 4, "p90": 4, "p99": 4, "longest": 5}
    assert found.bos == 0
    found.check()


def test_passes_are_updates_times_batch_size_over_items():
    # 60 updates × 8 rows = 480, over 3 rows 160 passes
    found = audit([row([7, 8, EOS], 2)] * 3)
    assert dict(found._lines())["passes"] == (
        "160.00 (60 updates × 8 rows of 3); so many memorize the rows: add rows, or set method.num_train_epochs=3"
    )
    # 7 × 8 / 3 = 18.67 passes are fewer than 20; completions of prompts differ in every pass.
    assert dict(replace(found, updates=7)._lines())["passes"] == "18.67 (7 updates × 8 rows of 3)"
    assert dict(replace(found, kind="Prompt")._lines())["passes"] == "160.00 (60 updates × 8 rows of 3)"
    assert found.to_dict()["passes"] == 160
    assert "passes" not in replace(found, updates=0).render()


def test_rows_without_tokens_in_the_loss_raise():
    with pytest.raises(ConfigError, match=r"x\.jsonl: 1 rows have no token in the loss; .*data\.show_mask=3"):
        audit([row([7, 8, EOS], 2), row([7, 8, EOS], 0)]).check()


def test_two_bos_tokens_raise():
    audit([row([BOS, 8, EOS], 2)]).check()
    with pytest.raises(ConfigError, match="rows start with 2 beginning-of-sequence tokens"):
        audit([row([BOS, BOS, 8, EOS], 2)]).check()


def test_audit_accepts_packed_blocks_cut_anywhere():
    found = audit([row([BOS, BOS, 8, 9], 3)], kind="Text", packed=True)
    found.check()
    assert "rows with end token" not in found.render()


def test_fingerprint_depends_on_tokens_masks_columns_and_order():
    one, other = row([7, 8, EOS], 2), row([7, 9, EOS], 2)
    prompt = EncodedPrompt(1, torch.tensor([7]), "a", {"answer": 4})
    prints = [
        fingerprint(items)
        for items in (
            [one],
            [other],
            [row([7, 8, EOS], 1)],
            [one, other],
            [other, one],
            [prompt],
            [replace(prompt, columns={"answer": 5})],
        )
    ]
    assert len(set(prints)) == len(prints)
    assert fingerprint([row([7, 8, EOS], 2, number=5)]) == prints[0]


def test_audit_table_without_colours_is_short_plain_text():
    text = replace(audit([row([7, 8, EOS], 2)], [row([7, 8, EOS], 2)]), updates=1).render()
    assert "data: x.jsonl" in text
    assert "9 read, 1 training, 1 held out" in text
    assert "2 duplicate" in text
    assert "id, tag (1 rows), [red]" in " ".join(text.split())
    assert "repaired" not in text
    assert "reward columns" not in text
    assert "2 of 3 (67 %)" in text
    assert "\x1b" not in text
    assert len(text.splitlines()) <= 11


@pytest.mark.parametrize(
    ("up", "down", "expected"),
    [
        (4, 3, "4 desirable, 3 undesirable"),
        (3, 4, "3 desirable, 4 undesirable"),
        # 1 * 6 over w * 2 is 4/3 at w = 2.25 and 1 at w = 3.
        (6, 2, "6 desirable, 2 undesirable; raise method.undesirable_weight to between 2.25 and 3 for method=kto"),
        # w * 2 over 1 * 6 is 1 at w = 3 and 4/3 at w = 4.
        (2, 6, "2 desirable, 6 undesirable; raise method.desirable_weight to between 3 and 4 for method=kto"),
        (0, 2, "0 desirable, 2 undesirable; only one of the two labels occurs"),
    ],
)
def test_audit_of_unbalanced_labels_names_the_weight_to_raise(up, down, expected):
    one = row([7, 8, EOS], 2)
    found = audit(
        [EncodedUnpairedPreference(1, one, one, label) for label in [True] * up + [False] * down],
        kind="UnpairedPreference",
    )
    assert expected == " ".join(dict(found._lines())["labels"].split())
    assert found.to_dict()["labels"] == {"desirable": up, "undesirable": down}
    assert found.tokens == 3 * (up + down)


def chain(ids: list[int], marked: list[int], labels: tuple[bool, ...]) -> EncodedSteps:
    """An encoded chain with a label at each marked position."""
    mask = torch.zeros(len(ids), dtype=torch.bool).index_fill(0, torch.tensor(marked), True)
    return EncodedSteps(1, EncodedRow(1, torch.tensor(ids), mask), labels)


def test_audit_counts_steps_and_labels():
    one, other = chain([7, 8, 9, EOS], [2, 3], (True, False)), chain([7, 8, EOS], [2], (True,))
    found = audit([one, other], kind="Steps")
    found.check()
    lines = dict(found._lines())
    # 2 + 1 steps, of which 1 + 1 are right
    assert lines["steps"] == "3; per row 1.5 on average, at least 1"
    assert lines["labels"] == "2 right, 1 wrong"
    assert "rows with end token" not in lines
    assert dict(audit([other], kind="Steps")._lines())["labels"].endswith("only one of the two labels occurs")
    assert fingerprint([one]) != fingerprint([replace(one, labels=(True, True))])


def test_preview_colours_each_step_by_its_label(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    ids = TEMPLATE.tokenizer("xzq", add_special_tokens=False)["input_ids"]
    text = show([chain([*ids, EOS], [2, 3], (True, False))], TEMPLATE, 1)
    assert "\x1b[2mx\x1b[0m\x1b[1;32mz\x1b[0m\x1b[1;31mq\x1b[0m\x1b[2m<|end|>" in text


def test_manifest_has_the_counts_without_samples():
    found = audit([row([7, 8, EOS], 2)]).to_dict()
    assert found["supervised"] == 2
    assert "samples" not in found


def test_preview_colours_the_tokens_in_the_loss(monkeypatch):
    ids = TEMPLATE.tokenizer("xz?", add_special_tokens=False)["input_ids"]
    item = row([*ids, EOS], 2)
    plain = show([item, item, item], TEMPLATE, 2)
    assert plain == "row 1\nxz?<|end|>\nrow 1\nxz?<|end|>"
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = show([item], TEMPLATE, 1)
    assert "\x1b[32m?\x1b[0m\x1b[32m<|end|>\x1b[0m" in coloured or "\x1b[32m?<|end|>" in coloured
    assert "\x1b[2mx" in coloured


def test_fingerprint_depends_on_the_gold_values_of_eval_rows():
    items = [row([7, 8, EOS], 2)]
    assert len({fingerprint(items), fingerprint(items, [1, 2]), fingerprint(items, [1, 3])}) == 3


def test_audit_names_the_key_of_an_unused_margin():
    pairs = replace(audit([row([7, 8, EOS], 2)]), kind="Preference", unused={"margin": 9})
    assert "margin; method.use_margin=true uses the margin, where the method has it" in " ".join(pairs.render().split())
    assert "use_margin" not in replace(pairs, kind="Demonstration").render()
