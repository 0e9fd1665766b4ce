"""Training holds one copy of the weights unless the loss needs the reference at every update."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from postrain.errors import ConfigError
from postrain.models.loading import load_causal
from postrain.training import reference
from postrain.training.reference import build_reference, gives, load_frozen
from tests.tiny import tiny_model
from tests.training_runs import records, small_run, train_config

READ = "reference: the initial policy, read from its files for each evaluation"


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_reference_read_for_each_evaluation_gives_the_numbers_of_a_frozen_copy(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    words = (f"method={method}", "method.updates=2", "method.learning_rate=1e-3", "evaluation.every=1")
    copied = small_run(tmp_path / "copied", *words)
    assert "reference: a frozen copy of the initial policy" in capsys.readouterr().out
    loads = []
    monkeypatch.setattr(reference, "READ_FROM", 0)
    monkeypatch.setattr(reference, "load_frozen", lambda *given: loads.append(1) or load_frozen(*given))
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "other"))
    read = small_run(tmp_path / "read", *words)
    assert READ in capsys.readouterr().out
    assert records(read) == records(copied)
    assert records(read)[0]["eval/kl/exact"] == 0
    assert records(read)[2]["eval/kl/exact"] > 0
    # Before training and after each update; precomputed log-probabilities are those of the policy itself.
    assert len(loads) == 3


@pytest.mark.parametrize(
    ("words", "held"),
    [
        (["method=sft"], False),
        (["method=sft", "method.kl_coef=0.1"], True),
        (["method=dpo", "reference=bundled:nano"], False),
        (["method=dpo", "reference=bundled:nano", "method.precompute_ref_log_probs=false"], True),
        (["method=dpo", "method.precompute_ref_log_probs=false"], True),
        # The loss has a copy of its own.
        (["method=dpo", "method.precompute_ref_log_probs=false", "method.ref_sync_steps=1"], False),
    ],
)
def test_only_a_loss_with_a_reference_holds_its_weights(
    words: list[str], held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "READ_FROM", 0)
    config = train_config(words)
    other = config.resolved if "reference=bundled:nano" in words else None
    built = build_reference(config, tiny_model(), other)
    assert built is not None
    assert (built._frozen is not None) is held
    with built.scoring():
        assert built._frozen is not None
    assert (built._frozen is not None) is held


def test_files_that_changed_during_the_run_are_refused() -> None:
    config = train_config(["method=sft"])
    resolved = config.resolved
    for changed in (replace(resolved, fingerprint="other"), replace(resolved, directory=Path("nowhere"))):
        with pytest.raises(ConfigError, match=r"^reference: the files in .* changed during the run; restore them"):
            load_frozen(config, changed, torch.float32)


def test_policy_from_python_is_read_from_its_files_only_if_they_give_it_back() -> None:
    config = train_config(["method=sft"])
    resolved = config.resolved
    policy = load_causal(resolved, dtype=torch.float32)
    load = partial(load_frozen, config, resolved, torch.float32)
    assert gives(load, policy)
    assert not gives(partial(load_frozen, config, resolved, torch.bfloat16), policy)
    assert not gives(partial(load_frozen, config, replace(resolved, fingerprint="other"), torch.float32), policy)
    with torch.no_grad():
        next(policy.parameters())[0, 0] += 1
    assert not gives(load, policy)
