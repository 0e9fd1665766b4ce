"""Tool calls in a completion, and a reward that compares them with the calls of the row.

Calls are compared as by the AST check of the Berkeley Function-Calling Leaderboard (Patil et al. 2025): parsed, the
same functions, the same arguments; the order of parallel calls does not count. Unlike there, texts have to be equal
letter for letter, and a row has one right value for each argument.

Calls are read as JSON, and inside the tags <tool_call> also in the forms of Qwen3-Coder and GLM, whose values have no
types: one that is JSON is read as JSON, any other as text; in comparisons it may be either. Leaves out the forms of
Mistral, DeepSeek and Python.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.data.chat import Template
from postrain.data.conversation import Message, Messages

FUNCTION = re.compile(r"<function=([^>\s]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
PARAMETER = re.compile(r"<parameter=([^>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
ARGUMENT = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)
LITERALS = {"True": True, "False": False, "None": None}
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


def find_calls(text: str, names: Collection[str] = (), texts: Collection[tuple[str, str, Any]] = ()) -> FoundCalls:
    """The calls in <tool_call> tags, else all JSON objects with a name and arguments, after the reasoning.

    In tags, and for functions of these names, a call may lack its arguments: it has none. In tags, one of these names
    alone is a call too. `texts` (function, argument, value): values without a type that are text even if they are JSON.
    """
    text = _without_reasoning(text)
    tagged = [tuple(_in_tags(piece, names, texts)) for piece in TAG.findall(text)]
    calls = [call for found in tagged for call in found] if tagged else list(_untagged(text, names))
    return FoundCalls(tuple(calls), sum(not found for found in tagged))


def compare(text: str, expected: Sequence[Mapping[str, Any]]) -> Verdict:
    """Compares the calls in a completion with the expected ones, in any order."""
    texts = [(call["name"], *argument) for call in expected for argument in call["arguments"].items()]
    found = find_calls(text, {call["name"] for call in expected}, texts)
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


def reads_calls(template: Template, prompt: Messages, calls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether calls that the chat template writes as an answer are read as these calls."""
    _, after = template.encode_completion(prompt, Message("assistant", "", tool_calls=tuple(calls)))
    return compare(template.decode(after), calls).arguments


def example_call(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call of a declared function with a text as its first argument."""
    function = tool.get("function", tool)
    names = list((function.get("parameters") or {}).get("properties") or {})
    return {"name": function["name"], "arguments": dict.fromkeys(names[:1], "a")}


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


def _in_tags(text: str, names: Collection[str], texts: Collection[tuple[str, str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The calls of the text in a tag."""
    if calls := tuple(_as_calls(_json(text))):
        yield from calls
        return
    for name, body in FUNCTION.findall(text):
        given = _json(body)
        pairs = PARAMETER.findall(body)
        yield {"name": name, "arguments": given if isinstance(given, dict) else _arguments(name, pairs, texts)}
    before, keys, _ = text.partition("<arg_key>")
    name = before.strip()
    if name in names if not keys else re.fullmatch(r"[\w.-]+", name):
        yield {"name": name, "arguments": _arguments(name, ARGUMENT.findall(text), texts)}


def _arguments(name: str, pairs: Sequence[tuple[str, str]], texts: Collection[tuple[str, str, Any]]) -> dict[str, Any]:
    """Arguments of a function whose values have no type."""
    found = {}
    for key, text in pairs:
        value = LITERALS[text] if text in LITERALS else _json(text)
        valid = _is_nested_at_most(value, MAX_DEPTH) and (value is not None or text in ("None", "null"))
        found[key.strip()] = value if valid and (name, key.strip(), text) not in texts else text
    return found


def _untagged(text: str, names: Collection[str]) -> Iterator[Mapping[str, Any]]:
    decoder = json.JSONDecoder()
    at = 0
    while (opening := OPENING.search(text, at)) is not None:
        at = opening.end()
        try:
            value, end = decoder.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            continue
        found = tuple(_as_calls(value, names))
        yield from found
        at = end if found else at


def _as_calls(value: Any, names: Collection[str] | None = None) -> Iterator[Mapping[str, Any]]:
    """The calls of a JSON value: one call, or a list of calls only; those of `names` (None: any) may lack arguments."""
    items = value if isinstance(value, list) else [value]
    found = [call for item in items if (call := _as_call(item, names)) is not None]
    yield from found if len(found) == len(items) else ()


def _as_call(value: Any, names: Collection[str] | None) -> Mapping[str, Any] | None:
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return None
    may_lack = set(function) <= {"name", "id", "type", *ARGUMENTS} and (names is None or function["name"] in names)
    given = next((function[key] for key in ARGUMENTS if key in function), {} if may_lack else None)
    given = {} if given in (None, "") and any(key in function for key in ARGUMENTS) else given
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
