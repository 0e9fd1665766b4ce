"""Tools of an environment: the calls in a message, their execution in parallel under a time limit, and their results.

A tool is a Python function of text and numbers with type hints and a docstring, from which the chat template's JSON
schema is made. A call that fails is not an error of the run: the policy reads what is wrong, and it is counted.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from postrain.data.conversation import Message, Messages, tools_of
from postrain.data.tool_calls import declare, misnamed
from postrain.errors import ConfigError, one_line
from postrain.rewards.tool_calls import find_calls

Tool = Callable[..., Any]
CallFormat = Literal["json", "text"]
ERROR = "error: "
LINE = re.compile(r"^\s*(\w+):[ \t]*(.*?)\s*$", re.MULTILINE)
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}
MAX_ABANDONED = 64
"""Calls that still run after their time limit before the run ends."""
_abandoned: list[threading.Thread] = []


class ToolError(Exception):
    """Raised by a tool; the policy reads its message."""


@dataclass(frozen=True)
class Result:
    """The result of a call."""

    name: str
    text: str
    failed: bool = False


@dataclass(frozen=True)
class Toolbox:
    """Tools with their limits."""

    tools: Mapping[str, Tool]
    """Functions by name."""
    call_format: CallFormat
    """json: calls as JSON, in <tool_call> tags or alone, and results as tool messages. text: a call is a line
    `NAME: ARGUMENT` of a tool with at most one argument, which is JSON unless it is text, and results are a user
    message."""
    seconds: float
    """Time limit of a call."""
    max_characters: int
    """Characters of a result; the rest is cut."""

    def __post_init__(self) -> None:
        for name, schema in self.schemas.items() if self.call_format == "text" else ():
            count = len(schema["parameters"]["properties"])
            if count > 1:
                raise ConfigError(
                    f"environment.call_format=text: {name} has {count} arguments; a call in text has one, so use "
                    "call_format=json"
                )

    @cached_property
    def schemas(self) -> Mapping[str, Mapping[str, Any]]:
        """The JSON schema of each tool. Raises ConfigError for a function without type hints or docstring."""
        return {schema["function"]["name"]: schema["function"] for schema in schemas_of(tuple(self.tools.values()))}

    def run(self, message: str) -> tuple[Result, ...]:
        """The results of the calls in a message, in order; () without a call."""
        calls, malformed = self._calls(message)
        threads = [self._start(call) for call in calls]
        deadline = time.monotonic() + self.seconds
        results = tuple(self._wait(call, *started, deadline) for call, started in zip(calls, threads, strict=True))
        return results + (Result("", f"{ERROR}a call is not valid JSON with name and arguments", True),) * malformed

    def replies(self, results: Sequence[Result]) -> Messages:
        """The messages that answer a message with these results."""
        if self.call_format == "text":
            return (Message("user", "\n".join(result.text for result in results)),)
        return tuple(Message("tool", result.text, name=result.name) for result in results)

    def _calls(self, message: str) -> tuple[list[Mapping[str, Any]], int]:
        """The calls in a message, and the number of malformed ones."""
        if self.call_format == "json":
            found = find_calls(message, self.tools)
            return [*found.calls], found.malformed
        lines = [match for match in LINE.finditer(message) if match[1] in self.tools]
        calls = [{"name": line[1], "arguments": self._only_argument(line[1], line[2])} for line in lines]
        # `NAME:` alone is a heading if the tool has an argument.
        return [call for call, line in zip(calls, lines, strict=True) if line[2] or not call["arguments"]], 0

    def _only_argument(self, name: str, text: str) -> dict[str, Any]:
        """The argument of a tool in the text format, as JSON if its type is not text; {} for a tool without one."""
        properties = self.schemas[name]["parameters"]["properties"]
        if not properties:
            return {}
        ((argument, schema),) = properties.items()
        if schema.get("type") == "string":
            return {argument: text}
        try:
            return {argument: json.loads(text)}
        except (ValueError, RecursionError):
            return {argument: text}

    def _start(self, call: Mapping[str, Any]) -> tuple[threading.Thread | None, list[Result]]:
        """Starts a call in a thread, which adds its result to the list; a call that does not fit has one already."""
        name, arguments = call["name"], call["arguments"]
        if name not in self.tools:
            return None, [Result(name, f"{ERROR}there is no tool {name}; the tools are {', '.join(self.tools)}", True)]
        if problem := misfit(arguments, self.schemas[name].get("parameters") or {}):
            return None, [Result(name, f"{ERROR}{name}: {problem}", True)]
        found: list[Result] = []
        # Not a pool's thread: the interpreter would wait for it at its end. A daemon thread may hang.
        thread = threading.Thread(target=lambda: found.append(self._called(name, arguments)), daemon=True)
        thread.start()
        return thread, found

    def _called(self, name: str, arguments: Mapping[str, Any]) -> Result:
        try:
            value = self.tools[name](**arguments)
            if inspect.iscoroutine(value):
                value = asyncio.run(value)
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        except ToolError as error:
            return Result(name, f"{ERROR}{one_line(error)}", True)
        except BaseException as error:  # SystemExit too: a tool does not end the run
            return Result(name, f"{ERROR}{name} failed with {one_line(error, with_type=True)}", True)
        if len(text) > self.max_characters:
            return Result(name, f"{text[: self.max_characters]} ... ({len(text)} characters)", True)
        return Result(name, text)

    def _wait(
        self, call: Mapping[str, Any], thread: threading.Thread | None, found: list[Result], deadline: float
    ) -> Result:
        if thread is not None:
            thread.join(max(0.0, deadline - time.monotonic()))
        if found:
            return found[0]
        assert thread is not None
        _abandon(thread, call["name"], self.seconds)
        return Result(call["name"], f"{ERROR}{call['name']} took longer than {self.seconds:g} seconds", True)


def _abandon(thread: threading.Thread, name: str, seconds: float) -> None:
    """Leaves a call running. Raises ConfigError if too many run: they slow the run down."""
    _abandoned[:] = [one for one in (*_abandoned, thread) if one.is_alive()]
    if len(_abandoned) > MAX_ABANDONED:
        raise ConfigError(
            f"environment: {len(_abandoned)} tool calls still run after their limit of {seconds:g} seconds, the last "
            f"one of {name}; give the tool a time limit of its own, or raise environment.timeout"
        )


def schemas_of(tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """JSON schemas of functions, for the column `tools` of prompts. Raises ConfigError for a function without type
    hints or docstring."""
    return tools_of(declare(tools))


def misfit(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Why arguments do not fit a JSON schema; empty if they do. Checks names and types, not nested values."""
    if problem := misnamed(arguments, parameters):
        return problem
    known: Mapping[str, Any] = parameters.get("properties") or {}
    wrong = [name for name, value in arguments.items() if name in known and not _has_type(value, known[name])]
    return f"the argument {wrong[0]} has to be {known[wrong[0]]['type']}" if wrong else ""


def _has_type(value: Any, schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type")
    if not isinstance(kind, str) or kind not in JSON_TYPES or (value is None and schema.get("nullable")):
        return True
    # bool is a subclass of int.
    return isinstance(value, JSON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
