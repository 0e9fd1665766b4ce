"""`rollout.dtype=auto`: the choice, and runs that repeat it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.fit import engine_of
from postrain.hardware import collectives
from postrain.jsonl import read_json
from postrain.rollout.decode.timing import DecodeTime
from postrain.rollout.local import LocalEngine
from postrain.runs.folder import RunFolder
from postrain.runs.resume import saved_config
from postrain.training import rollout_dtype
from postrain.training.rollout_dtype import Measured, settle_rollout_dtype
from tests.training_runs import final_state, records, resumed, same, shallow, small_run, train_config

FEW = (
    "method.updates=2",
    "method.batch_size=2",
    "method.group_size=2",
    "evaluation.completions=0",
    "data.eval_rows=4",
    "data.source.count=16",
)


def measured(rescoring: float = 0.0, **sampling: float) -> Measured:
    return Measured(8, 32, sampling, rescoring)


@dataclass
class FakeComponents:
    engine: Any


def settled(*words: str) -> tuple[Any, Any, list[str]]:
    """The engines of the config and of the method, and the lines of the console, with rollout.dtype=auto."""
    config = train_config([*words, "rollout.dtype=auto"])
    method = SimpleNamespace(components=FakeComponents(config.rollout))
    components: Any = SimpleNamespace(method=method)
    lines = settle_rollout_dtype(config, components)
    return config.rollout, method.components.engine, lines


def never(*_: Any) -> Measured:
    raise AssertionError("nothing is to be measured")


def test_rollout_takes_the_copy_of_the_weights_and_its_steps():
    assert DecodeTime(copying=0.5, step=0.25).total(8) == 0.5 + 8 * 0.25


def test_lower_precision_has_to_win_by_the_margin_with_old_log_probabilities():
    # 9 / 1.15 = 7.83: int8 takes 5 + 2 = 7 s, then 6 + 2 = 8 s.
    assert measured(2.0, policy=9.0, bf16=6.5, int8=5.0).fastest == "int8"
    assert measured(2.0, policy=9.0, bf16=6.5, int8=6.0).fastest == "policy"
    # Without the pass for old log-probabilities bf16 takes 6.5 s.
    assert measured(0.0, policy=9.0, bf16=6.5, int8=7.0).fastest == "bf16"
    assert measured().fastest == "policy"


def test_line_has_the_seconds_of_each_precision(monkeypatch):
    monkeypatch.setattr(rollout_dtype, "measured", lambda *_: measured(2.0, policy=9.0, int8=5.0))
    own, of_method, lines = settled("method=grpo")
    assert own is of_method
    assert (own.dtype, own.exact_logps) == ("int8", False)
    assert lines == [
        "rollout.dtype int8 (auto): CPU-s of 8 completions of 32 tokens: policy 9, int8 7, "
        "without policy 2 of it for old log-probabilities"
    ]


def test_all_ranks_take_the_choice_of_the_first(monkeypatch):
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    monkeypatch.setattr(collectives, "gather", lambda mine: [measured(policy=2.0, bf16=1.0), mine])
    monkeypatch.setattr(rollout_dtype, "measured", never)
    assert settled("method=grpo")[0].dtype == "bf16"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("method=sft",), "this method samples in evaluations only"),
        (("method=grpo", "trainer=fsdp", "trainer.accelerator=cpu"), "sharded models have no other"),
    ],
)
def test_policy_is_taken_without_measuring(words, reason, monkeypatch):
    monkeypatch.setattr(rollout_dtype, "measured", never)
    engine, _, lines = settled(*words)
    assert (engine.dtype, engine.exact_logps) == ("policy", True)
    assert lines == [f"rollout.dtype policy (auto): {reason}"]


def test_explicit_precision_is_kept(monkeypatch):
    monkeypatch.setattr(rollout_dtype, "measured", never)
    config = train_config(["method=grpo", "rollout.dtype=bf16"])
    assert settle_rollout_dtype(config, SimpleNamespace()) == []  # type: ignore[arg-type]
    assert config.rollout.dtype == "bf16"  # type: ignore[attr-defined]


def test_run_with_auto_is_the_run_with_the_chosen_precision_also_resumed(tmp_path, monkeypatch, capsys):
    words, measure = (*shallow("grpo"), *FEW), rollout_dtype.measured

    def scripted(*parts: Any) -> Measured:
        found = measure(*parts)
        assert found.rescoring > 0
        return replace(found, sampling={"policy": 2.0, "int8": 1.0}, rescoring=0.5)

    monkeypatch.setattr(rollout_dtype, "measured", scripted)
    auto = small_run(tmp_path, *words, "rollout.dtype=auto")
    # Two prompts × two completions of half of rollout.max_new_tokens=8.
    line = "rollout.dtype int8 (auto): CPU-s of 4 completions of 4 tokens: policy 2, int8 1.5"
    assert line in capsys.readouterr().out
    assert saved_config(auto)["rollout"]["dtype"] == read_json(auto.manifest)["config"]["rollout"]["dtype"] == "int8"
    explicit = small_run(tmp_path, *words, "rollout.dtype=int8")
    assert records(auto) == records(explicit)
    assert "rollout/is_mean" in records(auto)[-1]

    monkeypatch.setattr(rollout_dtype, "measured", never)
    sorted(auto.checkpoints.glob("*.ckpt"))[-1].unlink()
    shutil.rmtree(auto.model)
    # As the resumed job of a sweep, which repeats its overrides.
    resumed(auto, "rollout.dtype=auto")
    assert records(auto) == records(explicit)
    assert same(final_state(auto)["state_dict"], final_state(explicit)["state_dict"])
    with pytest.raises(ConfigError, match=r"rollout\.dtype: int8 → bf16"):
        resumed(auto, "rollout.dtype=bf16")


def test_resumed_fit_takes_the_precision_of_its_run(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text("rollout: {dtype: int8}\n")
    method: Any = SimpleNamespace(components=FakeComponents(LocalEngine(dtype="auto", top_k=3)))
    assert engine_of(method, tmp_path) == LocalEngine(dtype="int8", top_k=3)
    assert engine_of(method, None) == LocalEngine(dtype="auto", top_k=3)
