"""Base of environments with tools: results of calls are the replies, and a message without a call ends the episode."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from postrain.environments.base import MessageEnvironment, Reply
from postrain.environments.tools import CallFormat, Tool, Toolbox, schemas_of
from postrain.types import Count, Positive


@dataclass(frozen=True)
class ToolState:
    """The state of an episode with tools."""

    columns: Mapping[str, Any]
    """The columns of the prompt's record."""
    toolbox: Toolbox
    score: float | None = 0.0
    """The grade of the final answer; 0 before it, None without a grade."""


@dataclass(frozen=True, kw_only=True)
class ToolEnvironment(MessageEnvironment):
    """Runs the calls in a message of the policy and replies with their results.

    A subclass defines `tools`, and `grade` if it rewards answers itself. Failed calls (unknown tool, wrong arguments,
    an exception, the time limit, a result that is too long) are replies that the policy reads, counted as
    environment/errors.
    """

    call_format: CallFormat = "json"
    """json: calls as JSON, as chat templates with tools write them, and results as tool messages; prompts need the
    column `tools`. text: a call is a line `NAME: ARGUMENT`, of tools with at most one argument, and results are a user
    message; for templates without tools."""
    timeout: Positive = 5.0
    """Time limit in seconds of the calls of a message, which run in parallel. A call that exceeds it is abandoned."""
    max_result_characters: Count = 1000
    """Characters of the result of a call; the rest is cut, and counts as an error."""

    @abstractmethod
    def tools(self, columns: Mapping[str, Any]) -> Sequence[Tool]:
        """The tools of an episode: functions, plain or async, with type hints and a docstring. They run in threads."""

    def grade(self, columns: Mapping[str, Any], answer: str) -> float | None:
        """The reward of the final answer; None leaves it to the `reward` group."""
        return None

    def schemas(self) -> Mapping[str, Any]:
        """The column `tools` of prompts in the format json; {} in the format text."""
        return {"tools": schemas_of(self.tools({}))} if self.call_format == "json" else {}

    def reset(self, prompt: str, columns: Mapping[str, Any]) -> ToolState:
        tools = {tool.__name__: tool for tool in self.tools(columns)}
        return ToolState(columns, Toolbox(tools, self.call_format, self.timeout, self.max_result_characters))

    def step(self, state: ToolState, message: str) -> Reply:
        results = state.toolbox.run(message)
        if results:
            failed = sum(result.failed for result in results)
            return Reply(state, state.toolbox.replies(results), calls=len(results), errors=failed)
        score = self.grade(state.columns, message)
        return Reply(replace(state, score=score), reward=score, done=True)

    def metrics(self, state: ToolState) -> Mapping[str, float]:
        """success: the grade of the final answer, 0 without one; {} if answers are not graded here."""
        if state.score is None or type(self).grade is ToolEnvironment.grade:
            return {}
        return {"success": state.score}
