"""`postrain explain`: one-line errors, and the table of two sets of overrides that differ around the update only."""

from __future__ import annotations

import pytest

from postrain.cli.explain import main
from postrain.cli.sides import of_overrides


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere", "seed=1"], "nowhere: expected a run folder, such as runs/grpo/nano/..., or overrides"),
        (["seed=1", "seed=2", "--update", "0"], "--update 0: expected the number of an update, from 1"),
        (["method=sft", "method=dpo"], "method: SFT on demonstration rows and DPO on preference rows have no common"),
        (["seed=1", "method.kl_coeff=2"], "method.kl_coeff: unknown key"),
        (["experiment=paper/2510.00977", "seed=1"], "experiment=paper/2510.00977: is a pipeline, and explain compares"),
    ],
)
def test_mistakes_are_one_line(words, message, capsys):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")


def test_folder_that_is_not_a_training_run_is_refused(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model: {}\n")
    assert main([str(tmp_path), "seed=1"]) == 2
    assert "is not a training run" in capsys.readouterr().err


def test_overrides_without_a_method_are_of_grpo():
    config = of_overrides(["dialect=verl"])
    assert (config["method"]["_target_"], config["method"]["loss_type"]) == ("postrain.methods.grpo.GRPO", "bnpo")
