"""Reference log-probabilities from the cache, a frozen copy and the policy with its adapter disabled are equal."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from postrain.errors import ConfigError
from postrain.methods.reference_cache import lookup, read, row_digest, rows_in, write
from postrain.runs.folder import RunFolder
from tests.methods.builders import QUICK, float64_model, make_method, pairs, unpaired_preferences
from tests.models.test_adapters import lora
from tests.tiny import tiny_model
from tests.training_runs import final_state, records, resumed, same, small_run


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache directory for this test."""
    monkeypatch.setenv("POSTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def quick(tmp_path: Path, *overrides: str) -> RunFolder:
    return small_run(tmp_path / "runs", *QUICK, *overrides)


def model_of(tmp_path: Path) -> RunFolder:
    """A run whose exported model differs from its initial model."""
    return small_run(tmp_path / "runs", *QUICK[2:], "method=orpo", "method.updates=1")


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_precomputed_and_online_reference_logps_give_the_same_run(adapter, cache, tmp_path, capsys):
    def run(precompute: str) -> list[dict]:
        return records(quick(tmp_path, f"adapter={adapter}", f"method.precompute_ref_log_probs={precompute}"))

    online = run("false")
    weights = {"none": "a frozen copy of the initial policy", "lora": "the policy with its adapter disabled"}
    assert f"reference: {weights[adapter]}" in capsys.readouterr().out
    assert not cache.exists()
    computed, output = run("true"), capsys.readouterr().out
    (kept,) = cache.iterdir()
    # 8 training pairs and 4 held-out ones
    assert "24 rows" in output
    assert f"cached in {kept}" in output
    read_back, output = run("true"), capsys.readouterr().out
    assert f"24 rows under the initial policy, read from {kept}" in output
    assert read_back == computed
    for one, other in zip(online, computed, strict=True):
        for name in ("loss", "margin", "eval/loss", "eval/margin", "reward/chosen"):
            assert one.get(name) == pytest.approx(other.get(name), abs=2e-6)
    assert computed[1]["log_ratio_max"] < 1e-5


def test_a_reference_in_bf16_changes_log_ratios_by_rounding_only(cache, tmp_path):
    def run(*words: str) -> list[dict]:
        return records(quick(tmp_path, "adapter=none", *words))

    online = "method.precompute_ref_log_probs=false"
    exact, rounded = run(online), run(online, "trainer.reference_precision=bf16")
    assert exact[1]["log_ratio_max"] < 1e-5
    assert 1e-4 < rounded[1]["log_ratio_max"] < 0.3
    assert rounded[-1]["eval/loss"] == pytest.approx(exact[-1]["eval/loss"], abs=0.02)
    # Precomputed log-probabilities are those of the policy before the first update.
    completions = "evaluation.completions=4"
    assert run(completions, "trainer.reference_precision=bf16")[1]["log_ratio_max"] < 1e-5


def test_cache_depends_on_model_and_data_and_names_a_separate_reference(cache, tmp_path, capsys):
    other = model_of(tmp_path).model
    assert not cache.exists()
    quick(tmp_path, "method.updates=1")
    quick(tmp_path, "method.updates=1", "data.source.seed=1")
    assert len(list(cache.iterdir())) == 2
    capsys.readouterr()
    found = records(quick(tmp_path, "method.updates=1", f"reference={other}"))
    assert len(list(cache.iterdir())) == 3
    output = capsys.readouterr().out
    assert f"({other})" in next(line for line in output.splitlines() if line.startswith("reference: "))
    # The policy is not its own reference: allowed, and no margin of 0.
    assert abs(found[1]["margin"]) > 1e-6
    # Online computation with the separate model gives the same loss.
    online = records(quick(tmp_path, "method.updates=1", f"reference={other}", "method.precompute_ref_log_probs=false"))
    assert online[1]["loss"] == pytest.approx(found[1]["loss"], abs=2e-6)
    # The same weights as the policy, on the same data: the cache of the separate reference is used.
    quick(tmp_path, "method.updates=1", f"model.path={other}")
    assert len(list(cache.iterdir())) == 3
    assert "read from" in capsys.readouterr().out


def test_reference_with_another_vocabulary_is_refused(cache, tmp_path):
    other = model_of(tmp_path).model
    # The number of tokens is the same; one has another name.
    for path in (other / "tokenizer.json", other / "tokenizer_config.json"):
        path.write_text(path.read_text().replace("<|user|>", "<|human|>"))
    with pytest.raises(
        ConfigError, match=rf"^reference={other}: its vocabulary \(\d+ tokens\) differs from .*\)"
    ) as caught:
        quick(tmp_path, f"reference={other}")
    assert "\n" not in str(caught.value)


def test_missing_reference_is_refused(cache, tmp_path):
    with pytest.raises(
        ConfigError,
        match=r"^reference=.*nowhere: there is no such .*; give a run folder, a directory, a Hub name, or one of ",
    ) as caught:
        quick(tmp_path, f"reference={tmp_path / 'nowhere'}")
    assert "\n" not in str(caught.value)


def test_synced_reference_is_restored_on_resume(cache, tmp_path):
    settings = (
        "method.updates=3",
        "method.precompute_ref_log_probs=false",
        "method.ref_sync_steps=1",
        "method.ref_mixup_alpha=1",
        "method.loss={sigmoid:1,bco:1}",
        "trainer.checkpoint_every=1",
    )
    whole = quick(tmp_path / "whole", *settings)
    # The reference equals the policy at every update: margin and log-ratios are 0 while the policy changes.
    for record in records(whole)[1:]:
        assert record["margin"] == pytest.approx(0, abs=1e-5)
        assert record["log_ratio_max"] == pytest.approx(0, abs=1e-4)
    assert abs(records(whole)[3]["eval/logp/chosen"] - records(whole)[0]["eval/logp/chosen"]) > 1e-3
    killed = quick(tmp_path / "killed", *settings)
    for path in sorted(killed.checkpoints.glob("*.ckpt"))[1:]:
        path.unlink()
    resumed(killed)
    assert records(killed) == records(whole)
    one, other = final_state(killed), final_state(whole)
    assert same(one["state_dict"], other["state_dict"])
    assert one["postrain"]["state"].keys() == {"reference", "shift"}
    assert same(one["postrain"], other["postrain"])


@pytest.mark.parametrize("mix", [0.25, 1.0])
def test_synced_reference_is_mixed_with_the_policy(mix):
    batch = pairs(3)
    method = make_method("dpo", float64_model(0), ref_sync_steps=2, ref_mixup_alpha=mix)
    initial = {name: value.clone() for name, value in method.policy.state_dict().items()}
    change = float64_model(1).state_dict()
    expected = initial
    for update in range(4):
        prepared = method.prepare(batch)
        for _ in method.minibatches(prepared):
            # in place of an optimizer step
            method.policy.load_state_dict({name: initial[name] + (update + 1) * change[name] for name in initial})
        method.counters.updates += 1
        if update % 2 == 1:
            # θ_ref ← mix θ + (1 − mix) θ_ref, after updates 2 and 4
            current = method.policy.state_dict()
            expected = {name: mix * current[name] + (1 - mix) * expected[name] for name in initial}
        with method.synced.scoring() as reference:
            synced = reference.state_dict()
        assert all(torch.allclose(synced[name], expected[name]) for name in synced)
    # evaluations compare with the initial policy
    with method.reference_policy.scoring() as reference:
        assert same(dict(reference.state_dict()), initial)
    if mix == 1.0:
        total = method.loss_sum(method.prepare(batch)).total.item()
        assert total == pytest.approx(3 * torch.tensor(2.0, dtype=torch.float64).log().item())


@pytest.mark.parametrize("settings", [{"precompute_ref_log_probs": True}, {"reference_free": True}])
def test_ref_sync_steps_needs_a_reference_computed_at_every_update(settings):
    with pytest.raises(ConfigError, match=r"^method\.ref_sync_steps=4 .*method\.precompute_ref_log_probs=false"):
        make_method("dpo", float64_model(), ref_sync_steps=4, **settings)


def test_ref_sync_is_refused_with_an_adapter():
    with pytest.raises(ConfigError, match=r"^method\.ref_sync_steps: not with an adapter.*leave it 0$"):
        make_method("kto", lora().wrap(tiny_model(), head="causal"), ref_sync_steps=4)


@pytest.mark.parametrize("batch", [pairs(4), unpaired_preferences([True, False, True])])
def test_cached_log_probabilities_are_found_by_row_content(batch, tmp_path):
    method = make_method("dpo", float64_model())
    cached = method.reference_logps_of(batch)
    rows = rows_in(batch)
    assert len(cached) == len(rows)
    # in any order, and as read from disk
    tmp_path.joinpath("kept").mkdir()
    write(tmp_path / "kept", cached)
    again = read(tmp_path / "kept")
    backwards = rows.select(range(len(rows) - 1, -1, -1))
    for one, other in zip(lookup(cached, rows), reversed(lookup(again, backwards)), strict=True):
        assert torch.equal(one, other)
    ids, supervised = rows.ids[0], rows.supervised[0]
    changed = supervised.clone()
    changed[-1] = False
    digests = {row_digest(ids, supervised), row_digest(ids + 1, supervised), row_digest(ids, changed)}
    assert len(digests) == 3


def test_disabled_adapter_gives_the_log_probabilities_of_a_frozen_copy():
    batch, model = pairs(5), tiny_model()
    frozen, adapted = tiny_model(), lora().wrap(model, head="causal")
    learner = make_method("dpo", adapted)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    disabled = learner.prepare(batch)
    copied = make_method("dpo", adapted, reference=frozen).prepare(batch)
    for one, other in zip(
        disabled.ref_chosen + disabled.ref_rejected, copied.ref_chosen + copied.ref_rejected, strict=True
    ):
        assert torch.allclose(one, other, atol=1e-6)


def test_changed_reference_is_refused_on_resume(cache, tmp_path):
    other = model_of(tmp_path).model
    run = quick(tmp_path, f"reference={other}")
    weights = load_file(other / "model.safetensors")
    save_file({name: value * 1.01 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=r"^resume: .* started with another reference than .*; start a new run$"):
        resumed(run)
