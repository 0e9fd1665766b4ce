"""The note on bf16 for large models on a CPU that multiplies bf16 matrices much faster."""

from __future__ import annotations

import pytest

from postrain.config.tree import instantiate
from postrain.hardware.trainer import Hardware
from postrain.processor import bf16_speedup
from postrain.training.train import precision_note
from tests.methods.builders import defaults

LARGE = 135_000_000


def test_fast_bf16_is_named_for_a_large_model() -> None:
    (note,) = precision_note(Hardware(), instantiate(defaults("sft")), LARGE, lambda: 6.2)
    assert note == (
        "note: this processor multiplies bf16 matrices 6 times as fast as float32 ones; "
        "trainer.precision=bf16-mixed makes updates faster"
    )


@pytest.mark.parametrize(
    ("hardware", "method", "parameters", "speedup"),
    [
        (Hardware(), "sft", LARGE, 2.9),
        (Hardware(), "sft", 1_000_000, 6.0),
        (Hardware(), "dpo", LARGE, 6.0),
        (Hardware(), "grpo", LARGE, 6.0),
        (Hardware(precision="bf16-mixed"), "sft", LARGE, 6.0),
    ],
    ids=["slow-bf16", "small-model", "reference", "samples", "bf16-already"],
)
def test_no_note_where_bf16_does_not_pay(hardware: Hardware, method: str, parameters: int, speedup: float) -> None:
    assert precision_note(hardware, instantiate(defaults(method)), parameters, lambda: speedup) == []


def test_speedup_of_this_processor_is_positive() -> None:
    assert bf16_speedup() > 0
