"""Calls of a user's reward function: one for each batch of completions, each with a time limit; coroutines in parallel.

A call of a plain function is interrupted by a signal (user_code.time_limit), one of an `async def` function is
cancelled. All calls of a function share one event loop, so that it may keep an HTTP client.
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from postrain.rewards.user_code import TimedOut, source_location, time_limit

Keywords = Mapping[str, Any]


@dataclass(eq=False)
class Calls:
    """Calls `function` with keyword arguments; a call that exceeds the limit returns its TimedOut."""

    function: Callable[..., Any]
    who: str
    """The name of the function in messages."""
    timeout: float | None = None
    """Seconds; None is no limit."""
    workers: int = 1
    """Coroutines that run at a time."""

    def __call__(self, batches: Sequence[Keywords]) -> list[Any]:
        """The result of each call. Errors of the function pass through."""
        if not is_asynchronous(self.function):
            return [self._limited(self.timeout, lambda own=own: self.function(**own)) for own in batches]
        # For code that blocks the event loop: what all calls need one after the other, twice.
        limit = self.timeout and 2 * self.timeout * -(-len(batches) // self.workers)
        found = self._limited(limit, lambda: self._run(self._gathered(batches)))
        return [found] * len(batches) if isinstance(found, TimedOut) else found

    def _limited(self, seconds: float | None, call: Callable[[], Any]) -> Any:
        try:
            with time_limit(seconds, self.who, source_location(self.function)[0]):
                return call()
        except TimedOut as error:
            return error

    async def _gathered(self, batches: Sequence[Keywords]) -> list[Any]:
        free = asyncio.Semaphore(self.workers)

        async def limited(own: Keywords) -> Any:
            async with free:
                limit = asyncio.timeout(self.timeout)
                try:
                    async with limit:
                        return await self.function(**own)
                except TimeoutError:
                    if not limit.expired():  # an error of the function
                        raise
                    return TimedOut.of(self.who, self.timeout or 0.0)

        return await asyncio.gather(*map(limited, batches))

    def _run(self, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
        loop = self._loop
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return loop.run_until_complete(work)
        finally:
            for task in asyncio.all_tasks(loop):  # of interrupted work
                task.cancel()
        # A notebook runs a loop in this thread.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(loop.run_until_complete, work).result()

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        weakref.finalize(self, loop.close)
        return loop


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Whether a function, or the __call__ of an object, is `async def`."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - not a test of callability
