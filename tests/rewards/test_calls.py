"""calls.py: coroutines, batches and calls that exceed their time limit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest

from postrain.errors import ConfigError
from postrain.rewards.base import SAMPLED_COLUMNS, columns_read
from postrain.rewards.function import Function

LIMIT = 0.05
TEXTS = ["fine", "hangs", "good"]


def reward_of(function: Any, **settings: Any) -> Function:
    made = Function.of(function)
    for name, value in settings.items():
        setattr(made, name, value)
    return made


def scored(reward: Function, texts: Sequence[str] = TEXTS) -> list[float | None]:
    found = reward([f"prompt {text}" for text in texts], texts, [{"answer": text[0]} for text in texts])
    ((part, values),) = found.parts.items()
    assert part
    return list(values)


async def length(completions: Sequence[str], answer: Sequence[str], wait: Any = asyncio.sleep) -> list[float]:
    for text in completions:
        if text == "hangs":
            await wait(60)
        if text == "raises":
            raise TimeoutError("of the function's own client")
    return [float(len(text)) for text in completions]


def slow(completions: Sequence[str]) -> list[float]:
    if "hangs" in completions:
        time.sleep(60)
    return [float(len(text)) for text in completions]


async def blocks(completions: Sequence[str]) -> list[float]:
    if "hangs" in completions:
        time.sleep(60)
    return [1.0 for _ in completions]


@pytest.mark.parametrize("function", [length, slow])
def test_call_beyond_the_time_limit_is_unscorable_and_counted(function: Any, capsys: Any) -> None:
    assert scored(reward_of(function, timeout=LIMIT, batch_size=1)) == [4.0, None, 4.0]
    assert "warning: 1 of 3 completions not scored: reward function " in capsys.readouterr().err


def test_first_call_beyond_the_time_limit_ends_the_run() -> None:
    reward = reward_of(length, timeout=LIMIT)
    with pytest.raises(ConfigError, match=r"took longer than reward.timeout=0.05 seconds; raise the limit"):
        scored(reward)
    assert scored(reward, ["fine"]) == [4.0]
    assert scored(reward) == [None] * 3


def test_coroutine_that_blocks_its_event_loop_is_interrupted() -> None:
    reward = reward_of(blocks, timeout=LIMIT)
    assert scored(reward, ["fine"]) == [1.0]
    assert scored(reward) == [None] * 3


def test_coroutines_run_together_up_to_the_number_of_workers() -> None:
    running, most = 0, 0

    async def counts(completions: Sequence[str]) -> list[float]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return [float(len(completions))]

    assert scored(reward_of(counts, batch_size=1, workers=2), ["a"] * 5) == [1.0] * 5
    assert most == 2


def test_coroutine_runs_inside_a_running_event_loop() -> None:
    async def notebook() -> list[float | None]:
        return scored(Function.of(length), ["four"])

    assert asyncio.run(notebook()) == [4.0]


def test_error_of_a_coroutine_names_the_prompt() -> None:
    reward = reward_of(length, timeout=60.0)
    with pytest.raises(ConfigError, match=r"TimeoutError: of the function's own client at .* prompt 'prompt raises'"):
        scored(reward, ["fine", "raises"])


def test_batches_receive_their_part_of_the_columns() -> None:
    seen: list[tuple[Any, ...]] = []

    def records(completions: Sequence[str], answer: Sequence[str], scale: int = 1) -> list[float]:
        seen.append((list(completions), answer, scale))
        return [0.0] * len(completions)

    assert scored(reward_of(records, batch_size=2, arguments={"scale": 3})) == [0.0] * 3
    assert seen == [(["fine", "hangs"], ["f", "h"], 3), (["good"], ["g"], 3)]


def test_function_reads_the_sampled_columns_that_it_names() -> None:
    def reads(completions: Sequence[str], token_ids: Any, logps: Any, **columns: Any) -> list[float]:
        return [sum(own) / len(ids) for own, ids in zip(logps, token_ids, strict=True)]

    reward = Function.of(reads)
    assert columns_read(reward) == {"token_ids", "logps"} < set(SAMPLED_COLUMNS)
    columns = [{"token_ids": [1, 2], "logps": [-1.0, -2.0]}]
    assert reward([""], [""], columns).total_B.tolist() == [-1.5]
    with pytest.raises(ConfigError, match=r"needs token_ids, logps, known only of completions sampled in this run"):
        reward([""], [""], [{}])
    assert columns_read(reward_of(partial(reads), arguments={"logps": []})) == {"token_ids"}
