"""rollout.overlap=1: completions of the next update are sampled while the current one is learned."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.rollout import vllm_http
from postrain.rollout.ahead import Pending, SampledAhead, done, in_thread
from postrain.rollout.engine import EngineLost
from postrain.rollout.environment import SINGLE_TURN
from postrain.rollout.turns import EnvironmentStats, Rollout
from postrain.runs.folder import RunFolder
from tests.methods.builders import ScriptedEngine, make_method, plain_logps
from tests.methods.test_rollouts import FirstTokenReward, NumberTemplate, logged, prompts
from tests.rollout.fake_vllm import Calls, fake_server
from tests.rollout.test_vllm_server import PROMPTS, STOP, change, engine, sample
from tests.tiny import tiny_model
from tests.training_runs import final_state, records, resumed, same, small_run

TEMPLATE: Any = NumberTemplate()


def episode(*ids: int) -> Rollout:
    tokens = torch.tensor(ids)
    mask = torch.ones(len(ids), dtype=torch.bool)
    return Rollout(
        tokens, mask, -tokens.float(), None, True, False, (len(ids),), (0.5,), stats=EnvironmentStats(turns=1)
    )


def ahead(*episodes: Rollout, indices: tuple[int, ...] = (0, 1), update: int = 3) -> SampledAhead:
    return SampledAhead({update: Pending(indices, done(list(episodes)))})


def lost() -> list[Rollout]:
    raise EngineLost("rollout.url=x: it has restarted")


class Overlapping(ScriptedEngine):
    """The first weight of the model at each completion."""

    overlap = 1

    def __init__(self) -> None:
        super().__init__([[1, 4, 0], [2, 0]], exact_logps=False)
        self.weights: list[float] = []

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list:
        self.weights += [float(model.transformer.wte.weight.detach()[1, 0])] * len(prompts)
        return super().generate(model, prompts, seeds=seeds, stop=stop)


def test_each_update_learns_from_the_policy_before_the_last_step():
    sampler = Overlapping()
    components = {"engine": sampler, "template": NumberTemplate(), "reward": FirstTokenReward({"1": 1.0, "2": 0.0})}
    method = make_method(
        "grpo",
        tiny_model(),
        components=components,
        batch_size=2,
        group_size=2,
        dynamic_sampling=0,
        scale_rewards="none",
    )
    first, found = float(method.policy.transformer.wte.weight.detach()[1, 0]), []
    for update in range(3):
        method.accumulated, method.counters.updates = {}, update
        # What training_step does: the next prompts, up to the last update.
        method.next_prompts = prompts(2) if update < 2 else None
        found.append(method.prepare(prompts(2)))
        move(method.policy)
    # The first two updates learn from the initial policy, the third from the one after the first step.
    assert sampler.weights == pytest.approx([first] * 8 + [first + 0.5] * 4)
    assert torch.allclose(found[0].importance_weights_BT[found[0].logps_BT != 0], torch.tensor(1.0), atol=1e-5)
    before, now = (plain_logps(model, found[1].rows) for model in (tiny_model(), move(tiny_model())))
    for row, weights in enumerate(found[1].importance_weights_BT):
        expected = (now[row] - before[row]).exp().clamp(max=3.0)
        assert torch.allclose(weights[: len(expected)], expected, rtol=1e-4)
    assert logged(method, "rollout/logp_error") > 1e-3


def move(model: Any) -> Any:
    """The same model with another embedding of two tokens."""
    with torch.no_grad():
        model.transformer.wte.weight[1:3] += torch.linspace(0.5, -0.4, 16)
    return model


def test_dynamic_sampling_beyond_the_first_batch_uses_the_current_policy():
    sampler = Overlapping()
    components = {"engine": sampler, "template": NumberTemplate(), "reward": FirstTokenReward({"1": 1.0, "2": 1.0})}
    method = make_method("grpo", tiny_model(), components=components, batch_size=1, group_size=2, dynamic_sampling=1)
    for update in range(2):
        method.accumulated, method.counters.updates = {}, update
        method.next_prompts = prompts(2) if update < 1 else None
        method.prepare(prompts(2))
    # Two batches of two completions, two of the next update, and two more of it.
    assert len(sampler.weights) == 8
    assert logged(method, "group/prompts_sampled") == 2


class Slow(ScriptedEngine):
    """Keeps weights, and answers only once `go` is set."""

    def __init__(self) -> None:
        super().__init__([[1, 4, 0]], exact_logps=False)
        self.go, self.released = Event(), Event()

    def keep_weights(self, model: Any, prompts: Any) -> Any:
        return self

    def release(self) -> None:
        self.released.set()

    def generate(self, model: Any, prompts: Any, *, seeds: Any, stop: Any) -> list:
        assert self.go.wait(30)
        return super().generate(tiny_model(), prompts, seeds=seeds, stop=stop)


def test_learning_continues_before_the_engine_has_sampled():
    slow, kept = Slow(), SampledAhead()
    kept.start(1, [0], slow, tiny_model(), TEMPLATE, prompts(1), seeds=[5], environment=SINGLE_TURN)
    assert not kept.pending[1].episodes.done()
    slow.go.set()
    found = kept.take(1, [0])
    assert found is not None
    assert found[0].ids.tolist() == [1, 4, 0]
    assert slow.released.is_set()


def test_a_run_with_overlap_resumes_bit_for_bit(tmp_path):
    options = (
        "method=grpo",
        "rollout.overlap=1",
        "method.batch_size=4",
        "method.group_size=4",
        "evaluation.completions=0",
    )
    whole = small_run(tmp_path, *options)
    killed = RunFolder(shutil.copytree(whole.path, tmp_path / "copy" / Path(*whole.path.parts[-2:])))
    for path in sorted(killed.checkpoints.glob("*.ckpt"))[1:]:
        path.unlink()
    shutil.rmtree(killed.model)
    assert len(final_state(killed)["postrain"]["state"]["sampled_ahead"]["prompts"]) == 4
    resumed(killed)
    assert records(killed) == records(whole)
    assert same(final_state(killed)["state_dict"], final_state(whole)["state_dict"])
    assert "sampled_ahead" not in final_state(whole)["postrain"]["state"]


def test_rollouts_are_saved_by_prompt_and_restored_on_another_number_of_ranks(monkeypatch):
    saved = ahead(episode(1), episode(2, 3), episode(4), episode(5)).state(3)
    assert saved["prompts"].keys() == {0, 1}
    monkeypatch.setattr(collectives, "world_size", lambda: 2)
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    restored = SampledAhead()
    restored.load_state(saved)
    found = restored.take(3, [1])
    assert found is not None
    assert [one.ids.tolist() for one in found] == [[4], [5]]
    assert found[0].logps.tolist() == [-4.0]
    assert (found[0].finished, found[0].reward, found[0].stats.turns) == (True, 0.5, 1)


def test_rollouts_of_other_prompts_or_updates_are_not_taken():
    kept = ahead(episode(1), episode(2))
    assert kept.take(3, [0, 2]) is None
    assert kept.take(4, [0, 1]) is None
    assert kept.state(4) == {}


def test_a_lost_engine_samples_again_and_leaves_the_checkpoint_without_rollouts(capsys):
    failed = SampledAhead({3: Pending((0,), in_thread(lost))})
    assert failed.state(3) == {}
    assert failed.take(3, [0]) is None
    assert capsys.readouterr().err == (
        "note: rollout.url=x: it has restarted; update 4 is sampled again, from the current policy\n"
    )


def test_a_mistake_of_an_environment_is_reported_by_the_next_update():
    def wrong() -> list[Rollout]:
        raise ConfigError("environment Calculator: returned None")

    failed = SampledAhead({3: Pending((0,), in_thread(wrong))})
    assert failed.state(3) == {}
    with pytest.raises(ConfigError, match="returned None"):
        failed.take(3, [0])


def test_a_server_samples_from_the_kept_weights_while_the_policy_changes(monkeypatch):
    monkeypatch.setattr(vllm_http, "POLL", 0.01)
    calls, model = Calls(), tiny_model()
    with fake_server(calls) as (url, _handler):
        vllm = engine(url, overlap=1)
        kept = vllm.keep_weights(model, PROMPTS[:1])
        sent = calls.weights["transformer.wte.weight"].clone()
        change(model)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(sample, vllm, model)
            for turn in range(3):
                kept.generate(None, PROMPTS[:1], seeds=[turn], stop=STOP)
                assert calls.weights["transformer.wte.weight"].equal(sent)
            kept.release()
            waiting.result()
        assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)


def test_kept_weights_that_a_restart_lost_are_not_sampled_from(monkeypatch):
    monkeypatch.setattr(vllm_http, "POLL", 0.01)
    calls, model = Calls(), tiny_model()
    with fake_server(calls) as (url, handler):
        vllm = engine(url, overlap=1)
        kept = vllm.keep_weights(model, PROMPTS[:1])
        handler.restart_at = "/weight_info"
        with pytest.raises(EngineLost):
            kept.generate(None, PROMPTS[:1], seeds=[1], stop=STOP)
        with pytest.raises(EngineLost, match="has restarted"):
            kept.generate(None, PROMPTS[:1], seeds=[1], stop=STOP)
        kept.release()
        sample(vllm, model)
        assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)
