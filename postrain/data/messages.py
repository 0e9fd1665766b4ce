"""Parses the messages of a conversation in the formats of OpenAI, ShareGPT and others.

A field of a message is used, recorded as unused, or refused by name if it changes the meaning of the message. An answer
of weight 0 stays in the conversation as context and is not in the loss. Calls and results of tools keep their fields
(tool_calls.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from postrain.data.conversation import Message, Messages, is_transcript, transcript, with_prefill
from postrain.data.layouts import MEDIA, Empty, Malformed, empty, names, text
from postrain.data.message_fields import (
    CALL_FIELDS,
    CALL_ROLES,
    KNOWN_ROLES,
    PREFIXES,
    REASONING_FIELDS,
    REFUSED,
    REFUSED_WORDS,
    RESULT_ROLES,
    ROLES,
    TEXT_PARTS,
    WEIGHTS,
)
from postrain.data.tool_calls import calls, declaration
from postrain.jsonl import is_list

WORD = re.compile(r"[A-Z]?[a-z]+")
REMEDY = "remove the field or the row"


def messages(unused: set[str], value: Any, name: str, *, or_text: str = "", is_prompt: bool = False) -> Messages:
    """Parses a list of messages, or a single message, of the column `name`. Raises Malformed, and Empty for null.

    `unused` collects the names of fields that are not used, such as messages.id.
    `or_text` is a part of the error message. With `is_prompt` an assistant message at the end may be marked as a
    prefill.
    """
    listed = _listed(value)
    if not is_list(listed) or not listed:
        raise Malformed(f"{name} has to be {or_text}a list of messages with role and content, got {value!r:.60}")
    filled = _without_nulls(listed)
    last = len(filled) - 1
    return tuple(
        _message(unused, item, name, may_be_prefill=is_prompt and at == last) for at, item in enumerate(filled)
    )


def _without_nulls(listed: Sequence[Any]) -> list[Any]:
    """The messages without system messages of null; null as the last answer is an empty answer.

    Raises Empty for null in another message.
    """
    found: list[Any] = []
    for at, item in enumerate(listed, start=1):
        role = _null_role(item)
        if role == "assistant" and at == len(listed):
            found.append({**item, "content": "", "value": ""})
        elif role is None:
            found.append(item)
        elif role != "system":
            raise Empty("message")
    return found


def _null_role(item: Any) -> str | None:
    """The role of a message whose content is null, without calls and reasoning; None for other messages."""
    if not isinstance(item, Mapping) or not any(item.get(field, "") is None for field in ("content", "value")):
        return None
    if any(not empty(item.get(field)) for field in ("content", "value", *CALL_FIELDS, *REASONING_FIELDS)):
        return None
    role = item.get("role") or item.get("from")
    return ROLES.get(role.lower()) if isinstance(role, str) else None


def _listed(value: Any) -> Any:
    """Converts a single message, or an object of lists (`datasets` stores sequences so), to a list of objects."""
    if not isinstance(value, Mapping):
        return value
    lists = list(value.values())
    if lists and all(is_list(column) and len(column) == len(lists[0]) for column in lists):
        return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    return [value]


def is_messages(value: Any) -> bool:
    """True for a message or a list of them, all with a known role and a content or calls."""
    items = _listed(value)
    return is_list(items) and bool(items) and all(map(_is_message, items))


def _is_message(item: Any) -> bool:
    if not isinstance(item, Mapping):
        return False
    role, content = (item.get(first, item.get(second)) for first, second in (("role", "from"), ("content", "value")))
    role = role.lower() if isinstance(role, str) else ""
    is_result = role in RESULT_ROLES and content is not None
    has_content = isinstance(content, str | list) or is_result or any(item.get(field) for field in CALL_FIELDS)
    return has_content and role in KNOWN_ROLES


def awaits_answer(value: Any) -> bool:
    """True for messages that end with a user message, the result of a call or a prefill."""
    last = value[-1] if is_list(value) and value else None
    if not isinstance(last, Mapping):
        return False
    role = last.get("role", last.get("from"))
    asks = isinstance(role, str) and (ROLES.get(role.lower()) == "user" or role.lower() in RESULT_ROLES)
    return asks or any(last.get(field) for field in PREFIXES)


def parse_prompt(unused: set[str], value: Any, name: str) -> Messages:
    """Parses a prompt from text, a transcript, messages, or an object with the keys `messages` and `tools`.

    An assistant message at the end is a prefill.
    """
    if isinstance(value, str):
        return transcript(value) if is_transcript(value) else (Message("user", str(value)),)
    declared: Messages = ()
    if isinstance(value, Mapping) and "messages" in value:
        _check_fields(unused, value, name, ("messages", "tools"))
        declared = declaration(value.get("tools"), f"{name}.tools")
        value = value["messages"]
    return declared + with_prefill(messages(unused, value, name, or_text="text or ", is_prompt=True))


def history(unused: set[str], value: Any, name: str) -> Messages:
    """Parses earlier turns from messages or from [user, assistant] pairs of texts."""
    if not is_list(value):
        raise Malformed(f"{name} has to be a list of [user, assistant] pairs, got {value!r:.60}")
    if all(isinstance(item, Mapping) for item in value):
        return messages(unused, value, name)
    turns: list[Message] = []
    for pair in value:
        if not is_list(pair) or len(pair) != 2 or not all(isinstance(turn, str) for turn in pair):
            raise Malformed(f"{name} has to be a list of [user, assistant] pairs, got {pair!r:.60}")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(turns)


def _message(unused: set[str], item: Any, name: str, *, may_be_prefill: bool) -> Message:
    """Parses one message. With `may_be_prefill` an assistant message may have a field of PREFIXES."""
    if not isinstance(item, Mapping):
        raise Malformed(f"{name} has to hold messages with role and content, got {item!r:.60}")
    role_field, role = _field_of(item, ("role", "from"), name, same=ROLES)
    role = role.lower() if isinstance(role, str) else role
    if isinstance(role, str) and role in RESULT_ROLES:
        return _result(unused, item, name, role_field)
    if isinstance(role, str) and role in CALL_ROLES:
        content_field, content = _field_of(item, ("content", "value"), name)
        _check_fields(unused, item, name, (role_field, content_field, *WEIGHTS))
        return Message("assistant", "", _in_loss(item, "assistant", name), tool_calls=calls(content, name))
    if not isinstance(role, str) or role not in ROLES:
        known = ", ".join(sorted(KNOWN_ROLES))
        raise Malformed(f"{name} has a message with the role {role!r:.40}; known are {known}")
    if ROLES[role] == "assistant":
        return _answer(unused, item, name, role_field, may_be_prefill=may_be_prefill)
    content_field, content = _field_of(item, ("content", "value"), name)
    _check_fields(unused, item, name, (role_field, content_field, *WEIGHTS))
    return Message(ROLES[role], _content(unused, content, name), _in_loss(item, ROLES[role], name))


def _answer(unused: set[str], item: Mapping[str, Any], name: str, role_field: str, *, may_be_prefill: bool) -> Message:
    """An assistant message; its content may be absent beside calls."""
    called, thought = (
        [field for field in spellings if not (empty(item.get(field)) or item[field] is False)]
        for spellings in (CALL_FIELDS, REASONING_FIELDS)
    )
    for several in (called, thought):
        if any(item[field] != item[several[0]] for field in several):
            raise Malformed(f"{name} has a message whose {' and '.join(several)} differ; keep one of them")
    has_content = not called or any(item.get(field) is not None for field in ("content", "value"))
    content_field, content = _field_of(item, ("content", "value"), name) if has_content else ("content", "")
    prefixes = PREFIXES if may_be_prefill else ()
    _check_fields(unused, item, name, (role_field, content_field, *WEIGHTS, *prefixes, *called, *thought))
    return Message(
        "assistant",
        _content(unused, content, name),
        _in_loss(item, "assistant", name),
        tool_calls=calls(item[called[0]], f"{name}.{called[0]}") if called else (),
        reasoning=text(item[thought[0]], f"{name}.{thought[0]}") if thought else "",
    )


def _result(unused: set[str], item: Mapping[str, Any], name: str, role_field: str) -> Message:
    """The result of a call; an object or a number becomes JSON text."""
    content_field, content = _field_of(item, ("content", "value"), name)
    _check_fields(unused, item, name, (role_field, content_field, *WEIGHTS, "tool_call_id", "name"))
    if isinstance(content, Mapping | int | float):
        content = json.dumps(content, ensure_ascii=False)
    identity, function = (item.get(field) for field in ("tool_call_id", "name"))
    return Message(
        "tool",
        _content(unused, "" if content is None else content, name),
        _in_loss(item, "tool", name),
        tool_call_id=identity if isinstance(identity, str) else "",
        name=function if isinstance(function, str) else "",
    )


def _field_of(
    item: Mapping[str, Any], spellings: tuple[str, str], name: str, *, same: Mapping[str, str] | None = None
) -> tuple[str, Any]:
    """Name and value of a field with one of two names. Raises Malformed if it is missing, or if both exist and differ.

    `same` maps synonymous values to one value.
    """
    there = [field for field in spellings if item.get(field) is not None]
    values = {(same or {}).get(str(item[field]).lower(), str(item[field])) for field in there}
    if len(values) > 1:
        raise Malformed(f"{name} has a message whose {there[0]} and {there[1]} differ; keep one of the two")
    if not any(field in item for field in spellings):
        raise Malformed(f"{name} has a message without {spellings[0]}; its fields are {names(item)}")
    chosen = there[0] if there else spellings[0]
    return chosen, item.get(chosen)


def _check_fields(unused: set[str], item: Mapping[str, Any], name: str, used: Sequence[str]) -> None:
    """Raises Malformed for fields that change the meaning of a message; records all other unused fields."""
    for field, value in item.items():
        if field in used or empty(value):
            continue
        # A boolean holds no call and no image (parallel_tool_calls), and false switches a feature off; but a label of
        # false is a label.
        reason = REFUSED.get(field) or (None if isinstance(value, bool) else _refused_word(field))
        if reason and (value is not False or field in ("label", "kto_tag")):
            raise Malformed(f"{name} has {field}: {reason}; {REMEDY}")
        if not reason:
            unused.add(f"{name}.{field}")


def _refused_word(name: str) -> str | None:
    words = [word.lower() for word in WORD.findall(name)]
    return next((REFUSED_WORDS[word] for word in words if word in REFUSED_WORDS), None)


def _content(unused: set[str], value: Any, name: str) -> str:
    """The content as text; joins a list of text parts."""
    if not is_list(value):
        if not isinstance(value, str):
            raise Malformed(f"{name} has a message whose content is not text: {value!r:.60}")
        return str(value)
    return "".join(_part(unused, part, name) for part in value)


def _part(unused: set[str], part: Any, name: str) -> str:
    if isinstance(part, str):
        return str(part)
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in TEXT_PARTS:
        reason = (REFUSED.get(kind) or _refused_word(kind) or MEDIA) if isinstance(kind, str) else MEDIA
        raise Malformed(f"{name} has a content part of the type {kind!r:.40}: {reason}; remove the row")
    _check_fields(unused, part, f"{name}.content", ("type", "text"))
    return text(part.get("text"), f"the text of a content part in {name}")


def _in_loss(item: Mapping[str, Any], role: str, name: str) -> bool:
    """False for weight 0. Raises Malformed for weights other than 0 and 1, and for weight 1 of another role than the
    assistant.
    """
    there = [field for field in WEIGHTS if item.get(field) is not None]
    found = {field: _weight(item[field], f"{name}.{field}") for field in there}
    if len(set(found.values())) > 1:
        raise Malformed(f"{name} has a message whose {' and '.join(there)} differ; keep one of them")
    if role != "assistant" and any(found.values()):
        raise Malformed(
            f"{name} has a {role} message with {there[0]} {item[there[0]]!r:.40}; only assistant messages can have "
            "weight 1; remove the field, or set it to 0"
        )
    return all(found.values())


def _weight(value: Any, name: str) -> bool:
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise Malformed(f"{name} has to be 0 (context) or 1 (in the loss), got {value!r:.40}")
    return bool(value)
