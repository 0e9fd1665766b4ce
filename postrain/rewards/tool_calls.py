"""Tool calls in a completion, and a reward that compares them with the calls of the row.

Calls are compared as by the AST check of the Berkeley Function-Calling Leaderboard (Patil et al. 2025): parsed, the
same functions, the same arguments; the order of parallel calls does not count. Unlike there, texts have to be equal
letter for letter, and a row has one right value for each argument.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TAG = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
OPENING = re.compile(r"[{\[]")
ARGUMENTS = ("arguments", "parameters")
MAX_DEPTH = 100
"""Levels of nested arguments; deeper ones would exceed Python's recursion limit."""


@dataclass(frozen=True)
class FoundCalls:
    """The calls in a completion."""

    calls: tuple[Mapping[str, Any], ...]
    malformed: int
    """Number of tags <tool_call> that do not hold a call."""

    @property
    def parsed(self) -> bool:
        """True if there are calls, all of them well-formed."""
        return bool(self.calls) and not self.malformed


@dataclass(frozen=True)
class Verdict:
    """Comparison of the calls in a completion with the expected ones, of which there is at least one."""

    parsed: bool
    """Calls are there, all of them well-formed."""
    function: bool
    """Parsed, and the same functions are called."""
    arguments: bool
    """The same functions are called with the same arguments."""


def find_calls(text: str) -> FoundCalls:
    """The calls in <tool_call> tags, else all JSON objects with a name and arguments, after the reasoning."""
    text = _without_reasoning(text)
    tagged = [tuple(_as_calls(_json(piece))) for piece in TAG.findall(text)]
    calls = [call for found in tagged for call in found] if tagged else list(_untagged(text))
    return FoundCalls(tuple(calls), sum(not found for found in tagged))


def compare(text: str, expected: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compares the calls in a completion with the expected ones, in any order."""
    found = find_calls(text)
    names, wanted = (Counter(call["name"] for call in side) for side in (found.calls, expected))
    calls, right = (Counter(map(_canonical, side)) for side in (found.calls, expected))
    function = found.parsed and names == wanted
    return Verdict(found.parsed, function, function and calls == right)


def tool_calls(
    completions: Sequence[str], tool_calls: Sequence[Sequence[Mapping[str, Any]] | None]
) -> list[float | None]:
    """1 for the calls of the row, 2/3 for the right functions with other arguments, 1/3 for any well-formed call.

    If the row expects no call: 1 for a completion without one. Unscorable without the column `tool_calls`, which
    prompts made of conversations with tools have.
    """
    return [
        None if expected is None else _score(text, expected)
        for text, expected in zip(completions, tool_calls, strict=True)
    ]


def _score(text: str, expected: Sequence[Mapping[str, Any]]) -> float:
    if not expected:
        found = find_calls(text)
        return float(not (found.calls or found.malformed))
    verdict = compare(text, expected)
    return (verdict.parsed + verdict.function + verdict.arguments) / 3


def _without_reasoning(text: str) -> str:
    """The text after the last </think> that is not inside a call's tags."""
    at = len(text)
    while (at := text.rfind("</think>", 0, at)) >= 0:
        closing, opening = text.find("</tool_call>", at), text.find("<tool_call>", at)
        if closing < 0 or 0 <= opening < closing:
            return text[at + len("</think>") :]
    return text


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _untagged(text: str) -> Iterator[Mapping[str, Any]]:
    decoder = json.JSONDecoder()
    at = 0
    while (opening := OPENING.search(text, at)) is not None:
        at = opening.end()
        try:
            value, end = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            continue
        found = tuple(_as_calls(value))
        yield from found
        at = end if found else at


def _as_calls(value: Any) -> Iterator[Mapping[str, Any]]:
    """The calls of a JSON value: one call, or a list of calls only."""
    items = value if isinstance(value, list) else [value]
    found = [call for item in items if (call := _as_call(item)) is not None]
    yield from found if len(found) == len(items) else ()


def _as_call(value: Any) -> Mapping[str, Any] | None:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    given = next((function[key] for key in ARGUMENTS if key in function), None)
    arguments = _json(given) if isinstance(given, str) else given
    valid = isinstance(arguments, dict) and _is_nested_at_most(arguments, MAX_DEPTH)
    return {"name": function["name"], "arguments": arguments} if valid else None


def _is_nested_at_most(value: Any, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is None or (levels > 0 and all(_is_nested_at_most(one, levels - 1) for one in inner))


def _canonical(call: Mapping[str, Any]) -> str:
    """A text that is equal for equal calls: keys in order, 2.0 as 2."""
    return json.dumps([call["name"], _plain(call["arguments"])], sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
