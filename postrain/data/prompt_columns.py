"""Joins the columns of the context of an answer: prompt, system message, earlier turns and tools.

Columns with the same content are used once; columns with different content are refused with both names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from postrain.data.conversation import (
    DECLARATION,
    LAST_TURN,
    Answer,
    Message,
    Messages,
    as_answer,
    is_transcript,
    without_tools,
)
from postrain.data.layouts import PARTS, Empty, Fields, Malformed, absent, empty, text
from postrain.data.messages import history, messages, parse_prompt
from postrain.data.tool_calls import HERMES, check_tool_turns, declaration, without_hermes_tags
from postrain.jsonl import is_list

PROMPT_REMOVED = "prompt removed from an answer that repeats it"
INPUT_IN_PROMPT = "input not appended to a prompt that contains it"
BEFORE_PART = r"(?:\A|\n\s*\n|:\s)\s*[\"'“‘`]*"
AFTER_PART = r"[\"'”’`]*\.?\s*(?:\Z|\n\s*\n|\n[^\n:]{1,40}:)"
"""What surrounds a part of a prompt: its beginning or end, blank lines, and labels such as `Input:`; and quotes."""


def read_prompt(fields: Fields) -> Messages:
    """The turns of the prompt column; () without a prompt. A text prompt is followed by `input` or `context`."""
    found, context = fields.find("prompt"), fields.peek("input")
    if found is None:
        return ()
    name, value = found
    missing = absent(value)
    value = "" if missing else value
    plain = isinstance(value, str) and not is_transcript(value)
    if plain and context and not (empty(context[1]) or isinstance(context[1], str)):
        # In rows without an answer, a list or an object in this column is for rewards.
        if fields.layout.format.name != "prompt":
            raise Malformed(f"{context[0]} has to be text, which is appended to the prompt, got {context[1]!r:.60}")
    elif plain and context and isinstance(context[1], str):
        fields.find("input")
        part = context[1].strip()
        if part and _contains(value, part):
            fields.repaired.add(INPUT_IN_PROMPT)
        elif part:
            value = "\n\n".join(part for part in (str(value), str(context[1])) if part)
    return () if missing and not value else parse_prompt(fields.unused, value, name)


def needed_prompt(fields: Fields) -> Messages:
    """`read_prompt`, and raises Empty for a row without a prompt."""
    prompt = read_prompt(fields)
    if not prompt:
        raise Empty("prompt")
    return prompt


def _contains(prompt: str, part: str) -> bool:
    """True if a paragraph of the prompt, or all text after a label, is `part`; a word of a sentence is not."""
    return part in prompt and re.search(f"{BEFORE_PART}{re.escape(part)}{AFTER_PART}", prompt) is not None


def add_context(fields: Fields, turns: Messages) -> Messages:
    """Prepends the columns `tools`, `system` and `history` to the turns, unless the turns begin with them already.

    Raises Unusable for the result of a call that is not there; calls that the tools do not allow are warnings.
    """
    declared, rest = _declared_tools(fields, turns)
    found = declared + _add_system_and_history(fields, rest)
    fields.warned.update(check_tool_turns(found))
    return found


def _declared_tools(fields: Fields, turns: Messages) -> tuple[Messages, Messages]:
    """The declaration of tools, and the turns without it and without its repetition by Hermes."""
    own, rest = tuple(turn for turn in turns if turn.role == DECLARATION), without_tools(turns)
    column = fields.optional("tools")
    declared = declaration(column[1], column[0]) if column else ()
    if own and declared and own != declared:
        raise Malformed(f"prompt.tools and {column[0] if column else 'tools'} differ; keep one of the two")
    untagged = without_hermes_tags(rest) if declared else rest
    if untagged != rest:
        fields.repaired.add(HERMES)
    return own or declared, untagged


def _add_system_and_history(fields: Fields, turns: Messages) -> Messages:
    earlier = fields.optional("history")
    past = history(fields.unused, earlier[1], earlier[0]) if earlier else ()
    opening = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = turns[len(opening) :]
    rest = rest if rest[: len(past)] == past else past + rest
    system = fields.optional("system")
    if system is None:
        return opening + rest
    content = text(system[1], system[0])
    if opening and opening[0].content.strip() != content.strip():
        raise Malformed(f"{system[0]} and the first message both hold a system prompt and differ; remove one of them")
    return (*(opening or (Message("system", content),)), *rest)


def merge_prompts(prompt: Messages, shared: Messages, sides: str) -> Messages:
    """Merges the prompt column of a pair with the turns `shared` with which both sides begin."""
    if not shared or not prompt:
        return shared or prompt
    whole = joined_once(prompt, shared)
    if whole is not None:
        return whole
    if shared[0].role == "assistant":
        return prompt + shared
    if _contents(shared[-len(prompt) :]) == _contents(prompt):  # the prompt column holds the last question only
        return shared
    raise Malformed(f"prompt and the turns that begin {sides} differ; remove the column prompt or correct the turns")


def joined_once(prompt: Messages, turns: Messages) -> Messages | None:
    """The turns, with the tools and system message of the prompt if they lack them; None if they do not begin with it.

    Tools and a system message may be in one of the two only.
    """
    (own, asked), (given, rest) = _opening(prompt), _opening(turns)
    differ = own and given and _contents(own) != _contents(given)
    if differ or _contents(rest[: len(asked)]) != _contents(asked):
        return None
    return (given or own) + rest


def _opening(turns: Messages) -> tuple[Messages, Messages]:
    """The tools and system message at the beginning, and the other turns."""
    start = next((at for at, turn in enumerate(turns) if turn.role not in (DECLARATION, "system")), len(turns))
    return turns[:start], turns[start:]


def _contents(turns: Messages) -> list[tuple[str, str]]:
    """What has to be equal in equal turns."""
    return [(turn.role, turn.text.strip()) for turn in turns]


def read_conversation(fields: Fields) -> Messages:
    """The turns of the column `messages`. Raises Malformed if they lack a prompt or completion column."""
    name, value = fields.needed("messages")
    if absent(value):
        raise Empty("conversation")
    turns = messages(fields.unused, value, name)
    if "messages" in fields.layout.mapped:
        return turns
    for part in ("prompt", "completion"):
        for other in (column for column in PARTS[part] if column in fields.values):
            if not all(any(text.strip() in turn.content for turn in turns) for text in _texts(fields.values[other])):
                raise Malformed(
                    f"{other} and {name} both hold the {part} and differ; to use {name} alone give "
                    f"data.columns.messages={name}"
                )
            fields.used.add(other)
    return turns


def _texts(value: Any) -> list[str]:
    """The texts in a column of text or of messages."""
    if isinstance(value, str):
        return [value]
    items = value if is_list(value) else [value]
    found = [item.get("content", item.get("value")) for item in items if isinstance(item, Mapping)]
    return [content for content in found if isinstance(content, str)]


def last_answer(turns: Messages, name: str) -> Answer:
    """The last message as an answer. Raises Malformed if its weight is 0."""
    if not turns[-1].in_loss:
        raise Malformed(f"{name} ends with a message of weight 0, so nothing is left to compare; remove the row")
    return as_answer(turns[-1])


def repeats_prompt(prompt: Any, answers: Sequence[Any]) -> bool:
    """True if all answers are texts that begin with the prompt and are longer."""
    if not isinstance(prompt, str) or not prompt.strip():
        return False
    texts = [answer for answer in answers if isinstance(answer, str)]
    return len(texts) == len(answers) and all(t.startswith(prompt) and len(t) > len(prompt) for t in texts)


def strip_repeated_prompt(fields: Fields, answers: tuple[str, ...]) -> tuple[str, ...]:
    """Removes the prompt from the answers if all of them begin with it.

    An answer may begin with a short prompt by chance ("Hi", "Hi there"), so a text prompt is only removed if the
    answers of every row repeat it; a transcript always.
    """
    found = fields.peek("prompt")
    if found is None or not repeats_prompt(found[1], answers):
        return answers
    prompt = str(found[1])
    transcript = is_transcript("\n\n" + prompt.lstrip())
    if not transcript and not fields.layout.repeats_prompt:
        return answers
    fields.repaired.add(PROMPT_REMOVED)
    rest = tuple(answer[len(prompt) :] for answer in answers)
    return tuple(part.removeprefix(LAST_TURN).strip() for part in rest) if transcript else rest
