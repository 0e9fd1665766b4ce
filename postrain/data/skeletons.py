"""Renders a chat template once per sequence of roles instead of once per row.

Most templates insert the content of messages into text that depends on their roles only; `inserts_contents` proves it.
For such a template the text of the roles is rendered once, with placeholders, and later rows fill in their contents.
All other templates, and messages with blank contents, are rendered row by row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.data.rendering import current_clock, render
from postrain.data.template_proof import CLOSE, OPEN, SPACE, inserts_contents
from postrain.errors import ConfigError

PLACEHOLDER = re.compile(f"({SPACE}?){OPEN}(\\d+){CLOSE}{SPACE}?")
MAX_SKELETONS = 1000
"""Sequences of roles whose texts are kept."""

Part = tuple[str, int, bool]
"""Text, the index of the message whose content follows it, and whether the content is stripped."""
Skeleton = tuple[tuple[Part, ...], str]
"""The parts, and the text after the last of them."""


@dataclass(frozen=True, slots=True)
class AnsweredSkeleton:
    """The texts around the contents of a prompt and around its answer, which continues the prompt."""

    parts: tuple[Part, ...]
    opening: str
    """Text of the prompt after its last content: the generation prompt."""
    head: str
    """Text between the prompt and the answer."""
    strips: bool
    """Whether the answer is stripped."""
    tail: str
    """Text after the answer."""

    def prompt(self, contents: Sequence[str]) -> str:
        """The rendered prompt."""
        return _filled(self.parts, contents) + self.opening

    def answer(self, content: str) -> str:
        """The rendered answer, without the text after it."""
        return self.head + (content.strip() if self.strips else content)


class Skeletons:
    """The texts around the contents, by template and roles."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[Any, Skeleton | None] = {}
        self._answered: dict[Any, AnsweredSkeleton | None] = {}

    def fill(self, source: str, turns: Sequence[Mapping[str, Any]], *, prompt: bool) -> str | None:
        """The rendered conversation; None if the template has to render it."""
        if not all(map(_is_plain, turns)):
            return None
        skeleton = self._skeleton(source, tuple(turn["role"] for turn in turns), prompt)
        return skeleton and _filled(skeleton[0], [turn["content"] for turn in turns]) + skeleton[1]

    def answered(self, source: str, roles: tuple[str, ...]) -> AnsweredSkeleton | None:
        """The texts of messages of these roles and of an answer to them; None if the template has to render them."""
        key = (source, current_clock(), roles)
        if key not in self._answered:
            if len(self._answered) >= MAX_SKELETONS:
                return None
            self._answered[key] = self._answered_skeleton(source, roles)
        return self._answered[key]

    def _answered_skeleton(self, source: str, roles: tuple[str, ...]) -> AnsweredSkeleton | None:
        prompt, whole = self._skeleton(source, roles, True), self._skeleton(source, (*roles, "assistant"), False)
        if prompt is None or whole is None or not whole[0]:
            return None
        *parts, (before, index, strips) = whole[0]
        if tuple(parts) != prompt[0] or index != len(roles) or not before.startswith(prompt[1]):
            return None
        return AnsweredSkeleton(prompt[0], prompt[1], before.removeprefix(prompt[1]), strips, whole[1])

    def _skeleton(self, source: str, roles: tuple[str, ...], prompt: bool) -> Skeleton | None:
        moment = current_clock()  # of strftime_now
        key = (source, prompt, moment, roles)
        if key not in self._known:
            if len(self._known) >= MAX_SKELETONS or not inserts_contents(source, fixed_clock=moment is not None):
                return None
            try:
                self._known[key] = self._rendered(source, roles, prompt)
            except ConfigError:  # raised by the template; the caller reports it with the row
                self._known[key] = None
        return self._known[key]

    def _rendered(self, source: str, roles: tuple[str, ...], prompt: bool) -> Skeleton:
        marked = [{"role": role, "content": f"{SPACE}{OPEN}{at}{CLOSE}{SPACE}"} for at, role in enumerate(roles)]
        written, _ = render(source, marked, self.tokenizer.special_tokens_map, prompt=prompt)
        found = PLACEHOLDER.split(written)  # text, space, index, text, space, index, ..., text
        parts = zip(found[::3], found[1::3], found[2::3], strict=False)
        return tuple((text, int(at), not space) for text, space, at in parts), found[-1]


def _filled(parts: Sequence[Part], contents: Sequence[str]) -> str:
    return "".join([text + (contents[at].strip() if strip else contents[at]) for text, at, strip in parts])


def _is_plain(turn: Mapping[str, Any]) -> bool:
    """True for a message of a role and a text that is not blank."""
    content = turn.get("content")
    return len(turn) == 2 and isinstance(content, str) and not content.isspace() and content != ""
