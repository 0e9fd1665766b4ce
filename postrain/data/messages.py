"""The messages of a conversation, in the spellings of OpenAI, ShareGPT and others.

Every field of a message is used, noted as unused, or refused by name where it changes what the message says. A weight
of 0 keeps an answer in the conversation without learning it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from postrain.data.conversation import Message, Messages, is_transcript, transcript, with_prefill
from postrain.data.layouts import MEDIA, REFUSED_COLUMNS, TOOLS, Fields, Malformed, empty, is_list, names, text

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
}
TOOL_ROLES = ("tool", "function", "function_call", "tool_call", "observation", "ipython")
PREFIXES = ("prefix", "partial", "continue_final_message")
"""Fields of an assistant's message that is to be continued."""
REASONING = "a model's reasoning cannot be learned apart from its answer; write it into the content"
REFUSED: Mapping[str, str] = {
    **REFUSED_COLUMNS,
    "tool_call_id": TOOLS,
    "tool_call": TOOLS,
    "file": MEDIA,
    "files": MEDIA,
    "input_audio": MEDIA,
    **dict.fromkeys(("reasoning_content", "reasoning", "reasoning_details", "thinking", "thought"), REASONING),
    "refusal": "write the refusal into the content",
    "name": "speakers have roles only; write the name into the content",
    "channel": REASONING,
    "recipient": TOOLS,
    **dict.fromkeys(("label", "kto_tag"), "a verdict stands beside the messages, in a column of the row"),
    **dict.fromkeys(("mask", "masked", "train_detail", "training_detail"), "give the message a weight of 0 or 1"),
    **dict.fromkeys(PREFIXES, "only the assistant's last message of a prompt can be continued"),
}
"""Fields that change what a message says, with the reason why they cannot be used."""
REFUSED_WORDS: Mapping[str, str] = {
    **dict.fromkeys(("tool", "tools", "function", "functions"), TOOLS),
    **dict.fromkeys(("image", "images", "audio", "audios", "video", "videos", "media", "attachments"), MEDIA),
    **dict.fromkeys(("reasoning", "thinking", "think", "thought", "thoughts"), REASONING),
}
"""The same for words in the name of a field or of the type of a content part: tool_responses, thinking_text."""
WEIGHTS = ("weight", "loss_weight", "loss", "train", "training", "trainable", "learnable", "train_on_turn")
WORD = re.compile(r"[A-Z]?[a-z]+")
TEXT_PARTS = ("text", "input_text", "output_text")
REMEDY = "remove the field or the row"


def messages(fields: Fields, value: Any, name: str, *, or_text: str = "", is_prompt: bool = False) -> Messages:
    """A list of messages, or a single one, that stands in the column `name`.

    `or_text` is for the error alone. In a prompt, the assistant's last message may say that it is to be continued.
    """
    listed = _listed(value)
    if not is_list(listed) or not listed:
        raise Malformed(f"{name} has to be {or_text}a list of messages with role and content, got {value!r:.60}")
    last = len(listed) - 1
    return tuple(_message(fields, item, name, begun=is_prompt and at == last) for at, item in enumerate(listed))


def _listed(value: Any) -> Any:
    """A single message as a list, and an object of lists, as `datasets` stores sequences, as a list of objects."""
    if not isinstance(value, Mapping):
        return value
    lists = list(value.values())
    if lists and all(is_list(column) and len(column) == len(lists[0]) for column in lists):
        return [dict(zip(value, row, strict=True)) for row in zip(*lists, strict=True)]
    return [value]


def awaits_answer(value: Any) -> bool:
    """True for messages that end with the user's, or with one to be continued, so that an answer is still to come."""
    last = value[-1] if is_list(value) and value else None
    if not isinstance(last, Mapping):
        return False
    role = last.get("role", last.get("from"))
    return (isinstance(role, str) and ROLES.get(role.lower()) == "user") or any(last.get(field) for field in PREFIXES)


def parse_prompt(fields: Fields, value: Any, name: str) -> Messages:
    """A prompt as text, as a transcript, as messages, or as an object that holds messages.

    An assistant's message at its end is to be continued.
    """
    if isinstance(value, str):
        return transcript(value) if is_transcript(value) else (Message("user", str(value)),)
    if isinstance(value, Mapping) and "messages" in value:
        _check_fields(fields, value, name, ("messages",))
        value = value["messages"]
    return with_prefill(messages(fields, value, name, or_text="text or ", is_prompt=True))


def history(fields: Fields, value: Any, name: str) -> Messages:
    """Earlier turns: pairs of what the user and the assistant said, or messages."""
    if not is_list(value):
        raise Malformed(f"{name} has to be a list of [user, assistant] pairs, got {value!r:.60}")
    if all(isinstance(item, Mapping) for item in value):
        return messages(fields, value, name)
    turns: list[Message] = []
    for pair in value:
        if not is_list(pair) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
            raise Malformed(f"{name} has to be a list of [user, assistant] pairs, got {pair!r:.60}")
        turns += [Message("user", pair[0]), Message("assistant", pair[1])]
    return tuple(turns)


def _message(fields: Fields, item: Any, name: str, *, begun: bool) -> Message:
    """One message; where it has `begun` and is the assistant's, it may say so."""
    if not isinstance(item, Mapping):
        raise Malformed(f"{name} has to hold messages with role and content, got {item!r:.60}")
    role_field, role = _field_of(item, ("role", "from"), name, same=ROLES)
    role = role.lower() if isinstance(role, str) else role
    if isinstance(role, str) and role in TOOL_ROLES:
        raise Malformed(f"{name} has a message with the role {role!r}: {TOOLS}; remove the row")
    if not isinstance(role, str) or role not in ROLES:
        raise Malformed(f"{name} has a message with the role {role!r:.40}; known are {', '.join(sorted(ROLES))}")
    content_field, content = _field_of(item, ("content", "value"), name)
    begins = PREFIXES if begun and ROLES[role] == "assistant" else ()
    _check_fields(fields, item, name, (role_field, content_field, *WEIGHTS, *begins))
    return Message(ROLES[role], _content(fields, content, name), _learned(item, ROLES[role], name))


def _field_of(
    item: Mapping[str, Any], spellings: tuple[str, str], name: str, *, same: Mapping[str, str] | None = None
) -> tuple[str, Any]:
    """The field that is there under one of two names; Malformed where none is, or both are and differ.

    `same` are values that mean the same, by what they mean.
    """
    there = [field for field in spellings if item.get(field) is not None]
    meant = {(same or {}).get(str(item[field]).lower(), str(item[field])) for field in there}
    if len(meant) > 1:
        raise Malformed(f"{name} has a message whose {there[0]} and {there[1]} differ; keep one of the two")
    if not any(field in item for field in spellings):
        raise Malformed(f"{name} has a message without {spellings[0]}; its fields are {names(item)}")
    chosen = there[0] if there else spellings[0]
    return chosen, item.get(chosen)


def _check_fields(fields: Fields, item: Mapping[str, Any], name: str, used: Sequence[str]) -> None:
    """Refuses what changes the meaning of a message, and notes all else that is not used."""
    for field, value in item.items():
        if field in used or empty(value):
            continue
        # A flag holds no call and no image (parallel_tool_calls), and one that is off asks for nothing; a verdict does.
        reason = REFUSED.get(field) or (None if isinstance(value, bool) else _refused_word(field))
        if reason and (value is not False or field in ("label", "kto_tag")):
            raise Malformed(f"{name} has {field}: {reason}; {REMEDY}")
        if not reason:
            fields.unused.add(f"{name}.{field}")


def _refused_word(name: str) -> str | None:
    words = [word.lower() for word in WORD.findall(name)]
    return next((REFUSED_WORDS[word] for word in words if word in REFUSED_WORDS), None)


def _content(fields: Fields, value: Any, name: str) -> str:
    """Text, or a list of parts that are all text."""
    if not is_list(value):
        if not isinstance(value, str):
            raise Malformed(f"{name} has a message whose content is not text: {value!r:.60}")
        return str(value)
    return "".join(_part(fields, part, name) for part in value)


def _part(fields: Fields, part: Any, name: str) -> str:
    if isinstance(part, str):
        return str(part)
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    if not isinstance(part, Mapping) or kind not in TEXT_PARTS:
        reason = (REFUSED.get(kind) or _refused_word(kind) or MEDIA) if isinstance(kind, str) else MEDIA
        raise Malformed(f"{name} has a content part of the type {kind!r:.40}: {reason}; remove the row")
    _check_fields(fields, part, f"{name}.content", ("type", "text"))
    return text(part.get("text"), f"the text of a content part in {name}")


def _learned(item: Mapping[str, Any], role: str, name: str) -> bool:
    """False for weight 0. Weights other than 0 and 1 are refused, and so are answers of anyone but the assistant."""
    there = [field for field in WEIGHTS if item.get(field) is not None]
    found = {field: _weight(item[field], f"{name}.{field}") for field in there}
    if len(set(found.values())) > 1:
        raise Malformed(f"{name} has a message whose {' and '.join(there)} differ; keep one of them")
    if role != "assistant" and any(found.values()):
        raise Malformed(
            f"{name} has a {role} message with {there[0]} {item[there[0]]!r:.40}: of single messages, only the "
            "assistant's can be learned; remove the field, or set it to 0"
        )
    return all(found.values())


def _weight(value: Any, name: str) -> bool:
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise Malformed(f"{name} has to be 0 (read only) or 1 (learned), got {value!r:.40}")
    return bool(value)
