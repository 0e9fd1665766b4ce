"""Renders conversations through a chat template with transformers.

`strftime_now` uses the start time of the run (`clock_at`), so a template with today's date gives the same tokens when
the run is resumed on another day. Not included: tokens (chat.py) and images.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from postrain.data.conversation import DECLARATION, Message, Messages, is_transcript, transcript, user, with_prefill
from postrain.errors import ConfigError

GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
QUESTION = Message("user", "a")
ANSWER = "¶"
"""Placeholder answer to find the text that a template adds around an answer; does not occur in templates."""
CLOSING_TAG = re.compile(r"<[^<>\s]+>(?=\s*$)")
_clock: ContextVar[datetime | None] = ContextVar("clock", default=None)

Spans = list[tuple[int, int]]

VERBATIM = (
    "the chat template renders answers differently from a continuation of its prompt (it moves or removes thinking); "
    "training uses the answers as given, directly after the prompt used for sampling"
)
REWRITTEN = (
    "the chat template rewrites earlier answers of a conversation and has no generation marks; with "
    "data.loss_on=assistant only answers that it leaves unchanged are in the loss"
)


class TemplateRefusal(ConfigError):
    """A template raised an error for a conversation; `reason` is its message."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the chat template refuses the conversation: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer as the template renders it after a prompt."""

    text: str
    """The answer with its end-of-turn token if the template adds one."""
    ended: bool
    """False if the template adds no end-of-turn token; eos must be appended."""
    verbatim: bool
    """True if the answer is used as given because the template's rendering does not continue its prompt."""


@contextmanager
def clock_at(moment: datetime) -> Iterator[None]:
    """Sets the date and time that templates see inside the block to `moment`; outside it is the current time."""
    before = _clock.set(moment)
    try:
        yield
    finally:
        _clock.reset(before)


def current_clock() -> datetime | None:
    """The moment set by `clock_at`; None outside of its block."""
    return _clock.get()


def as_mapping(turn: Message) -> dict[str, Any]:
    """A message in the format of chat templates, which is that of OpenAI with arguments as objects."""
    calls = [
        {
            **({"id": call["id"]} if "id" in call else {}),
            "type": "function",
            "function": {"name": call["name"], "arguments": call["arguments"]},
        }
        for call in turn.tool_calls
    ]
    further = {
        "tool_calls": calls,
        "reasoning_content": turn.reasoning,
        "tool_call_id": turn.tool_call_id,
        "name": turn.name,
    }
    return {"role": turn.role, "content": turn.content, **{key: value for key, value in further.items() if value}}


def from_mapping(turn: Mapping[str, Any]) -> Message:
    """The message of `as_mapping`."""
    calls = (
        {**call["function"], **({"id": call["id"]} if "id" in call else {})} for call in turn.get("tool_calls", ())
    )
    return Message(
        turn["role"],
        turn["content"],
        tool_calls=tuple(calls),
        reasoning=turn.get("reasoning_content", ""),
        tool_call_id=turn.get("tool_call_id", ""),
        name=turn.get("name", ""),
    )


def conversation_of(prompt: str, columns: Mapping[str, Any]) -> str | Messages:
    """The prompt of a record with these columns as a conversation, if it has several turns or tools."""
    return prompt_messages(prompt, columns) if "messages" in columns or "tools" in columns else prompt


def prompt_messages(prompt: str, columns: Mapping[str, Any]) -> Messages:
    """The turns of the prompt of a record with these columns; those of a transcript from its text."""
    declared = (Message(DECLARATION, json.dumps(columns["tools"], ensure_ascii=False)),) if "tools" in columns else ()
    if is_transcript(prompt):
        return (*declared, *transcript(prompt))
    turns = map(from_mapping, columns["messages"]) if "messages" in columns else user(prompt)
    return with_prefill((*declared, *turns))


def prompt_with_roles(prompt: str, columns: Mapping[str, Any]) -> str:
    """The prompt for a judge: its text, with the role above each turn if there are several and the text lacks them."""
    if "messages" not in columns or is_transcript(prompt):
        return prompt
    return "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in map(from_mapping, columns["messages"]))


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    special: Mapping[str, str],
    *,
    tools: Sequence[dict[str, Any]] = (),
    prompt: bool = False,
    continues: bool = False,
    marks: bool = False,
) -> tuple[str, Spans]:
    """Renders a conversation; returns its text, and with `marks` the spans between generation marks.

    `prompt` adds the generation prompt; with `continues` the text ends with the last message, a prefill. `special` are
    the tokenizer's special tokens by name; `tools` are function schemas. Raises TemplateRefusal if the template fails.
    """
    # Template arguments cannot replace strftime_now, a global of transformers' template environment.
    moment = _clock.get() or datetime.now()
    try:
        _compile_jinja_template(source).environment.globals["strftime_now"] = moment.strftime
        texts, spans = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            tools=list(tools) or None,
            chat_template=source,
            return_assistant_tokens_mask=marks,
            add_generation_prompt=prompt and not continues,
            continue_final_message=continues,
            **special,  # pyright: ignore[reportArgumentType]
        )
    except (TemplateError, TypeError, ValueError) as error:
        reason = str(error).partition("Final message to continue")[0]
        raise TemplateRefusal(" ".join(reason.split())) from None
    return texts[0], [(int(start), int(end)) for start, end in spans[0]] if marks else []


def render_texts(source: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> str:
    """Renders a conversation. Raises ConfigError for a template that accepts content as a list of parts only."""
    try:
        written, _ = render(source, messages, special)
        refused = None
    except ConfigError as problem:
        written, refused = "", problem
    if not all(message["content"] in written for message in messages) and _takes_parts(source, messages, special):
        raise ConfigError(
            "the chat template accepts content as a list of parts only (for images), not as text; use "
            "data.template=plain or another, or give the tokenizer a template for text"
        )
    if refused:
        raise refused
    return written


def _takes_parts(source: str, messages: Sequence[Mapping[str, str]], special: Mapping[str, str]) -> bool:
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    try:
        written = render_jinja_template(conversations=[parts], chat_template=source, **special)[0][0]  # pyright: ignore
    except (TemplateError, TypeError, ValueError):
        return False
    # A template for text would print the list as a Python literal.
    return all(message["content"] in written for message in messages) and "'text'" not in written


def may_repeat_tag(prompt: str, answer: str) -> bool:
    """Whether the prompt ends with a tag and the answer begins with one: `continued` may change the answer."""
    return answer.lstrip().startswith("<") and CLOSING_TAG.search(prompt) is not None


def continued(prompt: str, bare: str, answer: str) -> str:
    """Removes a leading tag, such as <think>, from an answer if the generation prompt already ends with it.

    `bare` is the prompt without the generation prompt.
    """
    same = next((at for at, (one, other) in enumerate(zip(prompt, bare, strict=False)) if one != other), len(bare))
    opening = prompt[same:]
    tag = CLOSING_TAG.search(opening)
    if tag is None or not answer.lstrip().startswith(tag.group()):
        return answer
    return answer.lstrip().removeprefix(tag.group()).removeprefix(opening[tag.end() :])


def contains(written: str, answer: str) -> bool:
    """True if the rendered text contains the answer, ignoring whitespace."""
    return answer in written or "".join(answer.split()) in "".join(written.split())


def turn_end(text: str, ends: Sequence[str]) -> int | None:
    """Position after the first of the tokens `ends` in a text; None if it has none."""
    found = [(text.index(end), -len(end)) for end in ends if end in text]
    return min(found)[0] - min(found)[1] if found else None


def extend_to_turn_ends(text: str, marked: Spans, ends: Sequence[str]) -> Spans:
    """Extends or shortens marked spans to end after their end-of-turn token.

    Sampling stops at this token: the model generates the token, and no text after it, such as a line break.
    """
    found: Spans = []
    limits = [*(start for start, _ in marked), len(text)][1:]
    for (start, stop), limit in zip(marked, limits, strict=True):
        inside = [text.rfind(end, start, stop) + len(end) for end in ends if end in text[start:stop]]
        behind = [stop + len(end) for end in ends if text.startswith(end, stop) and stop + len(end) <= limit]
        closed = text[start:stop].endswith(tuple(ends))
        found.append((start, behind[0] if behind and not closed else max(inside, default=stop)))
    return found


def segments(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """Splits a text at its spans; returns each piece with the index of its span, -1 between spans."""
    pieces: list[tuple[str, int]] = []
    at = 0
    for number, (start, end) in enumerate(spans):
        pieces += [(text[at:start], -1), (text[start:end], number)]
        at = end
    return [*pieces, (text[at:], -1)]


def special_ids(tokenizer: Any) -> set[int]:
    """Ids of special and added tokens."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def end_of_turn(source: str, tokenizer: Any, tokenize: Callable[[Sequence[tuple[str, bool]]], list[list[int]]]) -> int:
    """The special token with which a template ends an answer, else eos."""
    turns = [as_mapping(QUESTION), as_mapping(Message("assistant", ANSWER))]
    _, _, tail = render_texts(source, turns, tokenizer.special_tokens_map).rpartition(ANSWER)
    special = special_ids(tokenizer)
    return next((token for token in tokenize([(tail, False)])[0] if token in special), tokenizer.eos_token_id)
