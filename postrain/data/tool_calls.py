"""Tools and tool calls of a row, in the forms of OpenAI, ShareGPT (LLaMA-Factory), TRL, xLAM and Hermes.

Tools are JSON schemas of functions; a call has the name of a function and its arguments as an object. Both may be JSON
text. Parquet and Arrow files store objects as structs, which fill absent keys with null: these nulls are removed, and
those of other files stay.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from postrain.data.conversation import DECLARATION, Message, Messages, tools_of
from postrain.data.layouts import Malformed, Unusable, empty
from postrain.data.values import Struct, clean_values, decode
from postrain.errors import ConfigError
from postrain.jsonl import is_list

Call = Mapping[str, Any]

NO_CALL = "tool message without a call before it"
UNDECLARED = "call of an undeclared function"
WRONG_ARGUMENTS = "call with undeclared arguments or without required ones"
HERMES = "system prompt and tags of Hermes replaced by tools, calls and results"
JSON_TYPES = {
    **dict.fromkeys(("str", "text"), "string"),
    **dict.fromkeys(("int", "long"), "integer"),
    **dict.fromkeys(("float", "double"), "number"),
    "bool": "boolean",
    **dict.fromkeys(("list", "tuple", "set", "sequence", "iterable"), "array"),
    **dict.fromkeys(("dict", "mapping"), "object"),
}
"""JSON schema types by the Python names that xLAM uses."""
TAG = "<tool_call>"
CALL_TAG = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
RESULT_TAG = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)
DECLARATION_TAG = "<tools>"


def declaration(value: Any, name: str) -> Messages:
    """The message that declares the tools of a column; () if there are none. Raises Malformed."""
    found = _parsed(value, name)
    tools = [_tool(tool, name) for tool in (found if is_list(found) else [found])] if not empty(found) else []
    return (Message(DECLARATION, json.dumps(tools, ensure_ascii=False)),) if tools else ()


def declare(tools: Iterable[Any]) -> Messages:
    """The message that declares tools given as JSON schemas or as Python functions with type hints and a docstring, as
    `apply_chat_template(tools=...)` takes them. Raises ConfigError."""
    if isinstance(tools, str | Mapping):
        raise ConfigError(f"tools: expected a list of JSON schemas or functions, got {tools!r:.60}")
    try:
        return declaration([get_json_schema(tool) if callable(tool) else tool for tool in tools], "tools")
    except (Malformed, DocstringParsingException, TypeHintParsingException) as error:
        raise ConfigError(" ".join(f"tools: {str(error).removeprefix('tools ')}".split())) from None


def calls(value: Any, name: str) -> tuple[Call, ...]:
    """The calls of a message, from a list, a single call, or either as JSON text. Raises Malformed."""
    found = _parsed(value, name)
    return tuple(_call(call, name) for call in (found if is_list(found) else [found]))


def check_tool_turns(turns: Sequence[Message]) -> Iterator[str]:
    """Yields a warning for each call that the declared tools do not allow. Raises Unusable for a result without a call.

    A tool message follows the assistant message with its call, or another result of it.
    """
    declared = {tool["function"]["name"]: tool["function"].get("parameters") or {} for tool in tools_of(turns)}
    called = False
    for turn in turns:
        if turn.role == "tool" and not called:
            raise Unusable(NO_CALL)
        called = turn.role == "tool" or bool(turn.tool_calls)
        for call in turn.tool_calls:
            if call["name"] not in declared:
                yield UNDECLARED
            elif misnamed(call["arguments"], declared[call["name"]]):
                yield WRONG_ARGUMENTS


def without_hermes_tags(turns: Messages) -> Messages:
    """Calls, results and tools that Hermes writes into texts, as fields of the messages. Raises Malformed.

    For rows with a column of tools: the system prompt that repeats them is removed.
    """
    return tuple(_untagged(turn) for turn in turns if not (turn.role == "system" and DECLARATION_TAG in turn.content))


def _untagged(turn: Message) -> Message:
    if turn.role == "assistant" and not turn.tool_calls:
        found = tuple(call for text in CALL_TAG.findall(turn.content) for call in calls(_hermes(text), TAG))
        return replace(turn, content=CALL_TAG.sub("", turn.content).strip(), tool_calls=found) if found else turn
    results = RESULT_TAG.findall(turn.content) if turn.role == "tool" else []
    return replace(turn, content="\n".join(results)) if results else turn


def _hermes(text: str) -> Any:
    """A call in a tag, which some rows write as a Python literal. Raises Malformed."""
    try:
        return _parsed(text, TAG)
    except Malformed:
        with suppress(ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return clean_values({TAG: ast.literal_eval(text)}, TAG)[0][TAG]
        raise


def _parsed(value: Any, name: str) -> Any:
    """A value that may be JSON text. Raises Malformed for text that is not JSON."""
    if not isinstance(value, str):
        return _without_nulls(value)
    try:
        return clean_values({name: decode(value)}, name)[0][name] if value.strip() else None
    except (json.JSONDecodeError, ConfigError):
        raise Malformed(f"expected JSON in {name}, got {value!r:.60}; correct the text or remove the row") from None


def _without_nulls(value: Any) -> Any:
    """The value without the nulls of structs."""
    if isinstance(value, Mapping):
        absent = isinstance(value, Struct)
        return {key: _without_nulls(item) for key, item in value.items() if not (absent and item is None)}
    return [_without_nulls(item) for item in value] if is_list(value) else value


def _function(value: Any) -> Any:
    """The function of a schema or a call, which OpenAI wraps, without fields that are null."""
    found = value.get("function") or value if isinstance(value, Mapping) else None
    return {key: item for key, item in found.items() if item is not None} if isinstance(found, Mapping) else None


def _tool(value: Any, name: str) -> dict[str, Any]:
    """A schema as {"type": "function", "function": {...}}."""
    function = _function(_parsed(value, name))
    if function is None or not isinstance(function.get("name"), str):
        raise Malformed(f"{name} has to hold function schemas with a name, got {value!r:.60}")
    schema = {key: value for key, value in function.items() if key != "type"}
    if "parameters" in schema:
        schema["parameters"] = _parameters(_parsed(schema["parameters"], f"{name}.parameters"))
    return {"type": "function", "function": schema}


def _parameters(value: Any) -> Any:
    """Parameters as a JSON schema; xLAM lists them by name, with Python types."""
    plain = isinstance(value, Mapping) and value and not {"type", "properties", "$ref", "anyOf"} & value.keys()
    if not plain or not all(isinstance(one, Mapping) and isinstance(one.get("type"), str) for one in value.values()):
        return value
    optional = [key for key, one in value.items() if "default" in one or "optional" in one["type"]]
    return {
        "type": "object",
        "properties": {key: {**one, "type": _json_type(one["type"])} for key, one in value.items()},
        "required": [key for key in value if key not in optional],
    }


def _json_type(name: str) -> str:
    word = re.split(r"[\[,(\s]", name.strip().lower())[0]
    return JSON_TYPES.get(word, word)


def _call(value: Any, name: str) -> dict[str, Any]:
    found = _parsed(value, name)
    function = _function(found)
    if function is None or not isinstance(function.get("name"), str) or not function["name"]:
        raise Malformed(f"{name} has to hold calls with the name of a function and its arguments, got {value!r:.60}")
    called = str(function["name"])
    given = next((function[key] for key in ("arguments", "parameters") if key in function), {})
    arguments = _parsed(given, f"the arguments of {called} in {name}")
    if not isinstance(arguments, Mapping) and not empty(arguments):
        raise Malformed(f"the arguments of {called} in {name} have to be a JSON object, got {given!r:.60}")
    identity = found.get("id")
    extra = {"id": identity} if isinstance(identity, str) and identity else {}
    return {"name": called, "arguments": dict(arguments or {}), **extra}


def misnamed(arguments: Mapping[str, Any], parameters: Any) -> str:
    """Why the names of arguments do not agree with a JSON schema; empty if they do, or if it does not name any."""
    schema = parameters if isinstance(parameters, Mapping) else {}
    known, required = schema.get("properties"), schema.get("required") or ()
    if missing := [name for name in (required if is_list(required) else ()) if name not in arguments]:
        return f"the argument {missing[0]} is missing"
    if not isinstance(known, Mapping) or schema.get("additionalProperties"):
        return ""
    unknown = [name for name in arguments if name not in known]
    return f"there is no argument {unknown[0]}; the arguments are {', '.join(known) or 'none'}" if unknown else ""
