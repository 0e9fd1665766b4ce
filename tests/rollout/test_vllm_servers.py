"""rollout=vllm with two fake vLLM servers: the weights go to both, each completes a part of the prompts."""

from collections.abc import Iterator
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.rollout import vllm_http
from postrain.rollout.vllm_http import Connection, Connections
from postrain.rollout.vllm_server import Servers
from tests.models.test_weight_sync import adapted
from tests.rollout.fake_vllm import END, Calls, Handler, fake_server
from tests.rollout.test_vllm_server import LOADED, STOP, change, engine
from tests.tiny import tiny_model

# Two groups of two.
PROMPTS = [torch.tensor(ids) for ids in ([5, 6, 7], [5, 6, 7], [8], [8])]
CHECKED = [*LOADED, "check"]
"""Events of a transfer of weights, with two prompts."""


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, type[Handler]]]]:
    monkeypatch.setattr(vllm_http, "POLL", 0.01)
    with fake_server(Calls()) as first, fake_server(Calls()) as second:
        yield [first, second]


def engine_of(two: list[tuple[str, type[Handler]]], **changes: Any) -> Any:
    return engine([url for url, _ in two], **changes)


def sample(vllm: Any, model: Any) -> list[list[int]]:
    found = vllm.generate(model, PROMPTS, seeds=[1, 2, 3, 4], stop=STOP)
    return [each.ids.tolist() for each in found]


def test_both_servers_get_the_weights_and_one_group_each(two):
    model = tiny_model()
    vllm = engine_of(two)
    sample(vllm, model)
    change(model)
    assert sample(vllm, model) == [[5, 6, 7, END], [5, 6, 7, END], [8, END], [8, END]]
    first, second = (handler.calls for _, handler in two)
    assert first.prompts == [[5, 6, 7]] * 4
    assert second.prompts == [[8]] * 4
    assert first.version == second.version
    for calls in (first, second):
        assert calls.events == [*CHECKED, *["/v1/completions"] * 2] * 2
        assert calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)


def test_completions_keep_their_order_when_the_second_server_answers_first(two, monkeypatch):
    answered = Event()
    for number, (_, handler) in enumerate(two):
        monkeypatch.setattr(handler.calls, "complete", waiting(handler.calls, answered, number))
    assert sample(engine_of(two), tiny_model())[0] == [5, 6, 7, END]


def waiting(calls: Calls, answered: Event, number: int) -> Any:
    """`calls.complete`, on the first server not before the second has answered."""
    complete = calls.complete

    def late(prompt: list[int], settings: Any, adapter: str | None = None) -> Any:
        if settings.get("ignore_eos"):
            return complete(prompt, settings, adapter)
        if number == 0:
            assert answered.wait(10)
        found = complete(prompt, settings, adapter)
        answered.set()
        return found

    return late


@pytest.mark.parametrize("lost", [0, 1])
def test_a_restart_of_one_server_sends_the_weights_to_both(two, lost: int):
    model = tiny_model()
    vllm = engine_of(two, server_timeout=5.0)
    before = sample(vllm, model)
    for _, handler in two:
        handler.calls.events.clear()
    two[lost][1].restart_at = "/v1/completions"
    assert sample(vllm, model) == before
    for _, handler in two:
        assert handler.calls.events[-7:] == [*CHECKED, *["/v1/completions"] * 2]
        assert handler.calls.weights["transformer.wte.weight"].equal(model.transformer.wte.weight)


def test_a_server_that_stays_down_is_named(two):
    model = tiny_model()
    vllm = engine_of(two)
    sample(vllm, model)
    two[1][1].down = True
    with pytest.raises(ConfigError, match=rf"^rollout\.url={two[1][0].rstrip('/')}: [^\n]*cannot be reached[^\n]*$"):
        sample(vllm, model)


def test_weights_that_did_not_arrive_at_one_server_are_an_error(two):
    two[1][1].calls.lost = ("transformer.h.1.mlp.c_fc.weight",)
    with pytest.raises(ConfigError, match=rf"^rollout\.url={two[1][0].rstrip('/')}: with the policy's weights[^\n]*$"):
        sample(engine_of(two), tiny_model())


def test_both_servers_get_an_adapter(two):
    sample(engine_of(two, enable_lora=True), adapted("gpt2"))
    first, second = (handler.calls for _, handler in two)
    assert first.adapters == second.adapters
    assert {request["model"] for calls in (first, second) for request in calls.settings} == set(first.adapters)


@pytest.mark.parametrize("url", [[], ["http://a", "b"], ["http://a", "http://a/"]])
def test_invalid_lists_of_servers_are_refused(url: list[str]):
    with pytest.raises(ConfigError, match=r"^rollout\.url=[^\n]*expected an address[^\n]*$"):
        engine(url)


@pytest.mark.parametrize(
    ("world", "rows", "servers", "expected"),
    [
        (1, 4, 1, [[4]]),
        (1, 5, 2, [[2, 3]]),
        (1, 1, 2, [[0, 1]]),
        (2, 4, 2, [[4, 0], [0, 4]]),
        (3, 4, 2, [[4, 0], [2, 2], [0, 4]]),
        (2, 3, 4, [[1, 2, 0, 0], [0, 0, 1, 2]]),
    ],
)
def test_servers_share_the_rows_of_all_ranks(monkeypatch, world: int, rows: int, servers: int, expected: Any):
    connections = Connections(tuple(Connection(f"http://{number}", 1.0) for number in range(servers)))
    backend: Any = Servers(
        connections, tiny_model(), transfer="disk", folder=None, dtype=torch.float32, enable_lora=False
    )
    found: list[list[int]] = []
    monkeypatch.setattr(collectives, "world_size", lambda: world)
    for rank in range(world):
        sizes = [0] * servers

        def complete(prompts: list[int], settings: list[int], sizes: list[int] = sizes, *, at: int) -> list[int]:
            assert prompts == settings
            sizes[at] = len(prompts)
            return prompts

        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        backend.replicas = [
            SimpleNamespace(complete=lambda p, s, at=at, call=complete: call(p, s, at=at)) for at in range(servers)
        ]
        assert backend.complete(list(range(rows)), list(range(rows))) == list(range(rows))
        found.append(sizes)
    assert found == expected
