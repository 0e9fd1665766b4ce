"""The parts of a conversation that a chat template renders, and tools as text for templates without them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from postrain.data import rendering, template_choice
from postrain.data.conversation import DECLARATION, Message, tools_of
from postrain.errors import ConfigError, RowError

TOOLS, CALLS, RESULTS, REASONING = "tools", "tool_calls", "tool messages", "reasoning_content"
SYSTEM = "system messages"
PROBE = Message("tools", '[{"type": "function", "function": {"name": "declared_probe", "description": "a"}}]')
CALL = Message("assistant", "", tool_calls=({"name": "called", "arguments": {"x": "sent_probe"}, "id": "callprobe"},))
RESULT = Message("tool", "received_probe", tool_call_id="callprobe", name="called")
THOUGHT = Message("assistant", "so", reasoning="thought_probe")
QUESTION = Message("user", "a")
INSTRUCTION = Message("system", "system_probe")
NOT_CONTINUED = (
    "the chat template renders an answer with tool_calls or reasoning_content differently from a continuation of its "
    "prompt; use data.template=tools, or write both into the content"
)


def needed(messages: Sequence[Message]) -> frozenset[str]:
    """The parts of a conversation, besides system messages, that not every template renders."""
    return frozenset(
        part
        for turn in messages
        for part, there in (
            (TOOLS, turn.role == DECLARATION),
            (CALLS, turn.tool_calls),
            (RESULTS, turn.role == "tool"),
            (REASONING, turn.reasoning),
        )
        if there
    )


def rendered_parts(source: str, special: Mapping[str, str]) -> frozenset[str]:
    """The parts that a template renders: the text of each occurs in a conversation that has it."""
    return _rendered_parts(source, tuple(sorted((name, str(token)) for name, token in special.items())))


@lru_cache(maxsize=64)
def _rendered_parts(source: str, special: tuple[tuple[str, str], ...]) -> frozenset[str]:
    written = _text(source, (PROBE, QUESTION, CALL, RESULT), dict(special))
    probes = {TOOLS: "declared_probe", CALLS: "sent_probe", RESULTS: "received_probe"}
    found = {part for part, probe in probes.items() if probe in written}
    thought = "thought_probe" in _text(source, (QUESTION, THOUGHT), dict(special))
    # A template that refuses system messages says so itself.
    instructed = _text(source, (INSTRUCTION, QUESTION), dict(special))
    system = not instructed or "system_probe" in instructed
    return frozenset(found | ({REASONING} if thought else set()) | ({SYSTEM} if system else set()))


def _text(source: str, messages: Sequence[Message], special: Mapping[str, str]) -> str:
    turns = [rendering.as_mapping(turn) for turn in messages if turn.role != DECLARATION]
    try:
        return rendering.render(source, turns, special, tools=tools_of(messages), prompt=True)[0]
    except ConfigError:
        return ""


def with_tools(source: str | None, tokenizer: Any, *, bos: bool) -> str:
    """A template that renders tools: `source` if it does, else `source` (None: alpaca) with tools written as text.

    The text has the tags of Hermes (<tools>, <tool_call>, <tool_response>), which inference engines parse.
    """
    source = source or template_choice.bundled("alpaca", bos=bos)
    if {TOOLS, CALLS, RESULTS} <= rendered_parts(source, tokenizer.special_tokens_map):
        return source
    return template_choice.bundled("tools", bos=False) + "\n" + source


def answer_after(before: str, whole: str, ends: Sequence[str], *, row: int) -> rendering.RenderedAnswer:
    """An answer with calls or reasoning up to its last end-of-turn token, from the prompt and the whole conversation.

    Raises RowError if the conversation does not continue the prompt.
    """
    if not whole.startswith(before):
        raise RowError(row, NOT_CONTINUED)
    text = whole[len(before) :]
    end = max((text.rindex(token) + len(token) for token in ends if token in text), default=None)
    return rendering.RenderedAnswer(text.rstrip() if end is None else text[:end], ended=end is not None, verbatim=False)


def check(messages: Sequence[Message], rendered: Callable[[], Collection[str]], tokenizer: Any) -> None:
    """Raises ConfigError if the template does not render a part of the conversation; `rendered` are those it does."""
    missing = needed(messages) | ({SYSTEM} if any(turn.role == "system" for turn in messages) else set())
    missing = missing.difference(rendered()) if missing else missing
    if not missing:
        return
    own = "tool_use" if "tool_use" in template_choice.named_templates(tokenizer) else "tools"
    remedies = {
        frozenset({REASONING}): "write the reasoning into the content, as <think>...</think>",
        frozenset({SYSTEM}): "write their text into the first message of the user, or use data.template=alpaca",
    }
    remedy = remedies.get(missing, f"use data.template={own}, or give the tokenizer a template that can")
    raise ConfigError(f"the chat template cannot render {', '.join(sorted(missing))}; {remedy}")
