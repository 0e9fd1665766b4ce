"""Conversations as text under a chat template: prompts, the answers that continue them, places of earlier answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from postrain.data import rendering, tool_templates
from postrain.data.conversation import LAST_TURN, Answer, Message, Messages, as_answer, as_message, without_tools
from postrain.data.rendering import ANSWER, QUESTION, REWRITTEN, RenderedAnswer, TemplateRefusal
from postrain.data.skeletons import AnsweredSkeleton, Skeletons
from postrain.errors import ConfigError, RowError
from postrain.seeds import derive_seed

OMITTED = "the chat template omits the assistant's message; use data.template=plain or another"


class RefusedRow(RowError):
    """A row that the chat template refuses; `reason` is the message of the template."""

    def __init__(self, row: int, refusal: TemplateRefusal) -> None:
        super().__init__(row, str(refusal))
        self.reason = refusal.reason


@dataclass
class ConversationTexts:
    """Renders conversations."""

    name: str
    """The name of the template."""
    sources: tuple[str, ...]
    """Its Jinja source; several for `random`."""
    tokenizer: Any
    seed: int
    """Seed of the draws of `random`."""
    ends: tuple[str, ...]
    """The end-of-turn tokens."""
    notes: dict[str, None]
    """Notes on the rendered rows for the console: an ordered set."""

    def __post_init__(self) -> None:
        self._skeletons = Skeletons(self.tokenizer)
        self._parts: dict[str, frozenset[str]] = {}
        self._rendered_roles: set[Any] = set()
        """Sequences of roles that a template renders."""

    def prompt(self, messages: Sequence[Message], row: int) -> str:
        """The text of a prompt up to the first generated token."""
        self._check(messages, row)
        return self._render(messages, row, prompt=True)

    def refusal(self, prompt: Sequence[Message], answers: Sequence[Answer], row: int) -> str | None:
        """The message with which the template refuses a conversation; None if it renders it.

        A template may refuse roles, and contents of calls and blank messages. So plain messages are rendered once for
        each sequence of roles, and others each time.
        """
        plain = all(turn.is_plain for turn in prompt)
        plain = plain and all(isinstance(answer, str) and bool(answer.strip()) for answer in answers)
        roles = (self.source(row), len(answers), *[turn.role for turn in prompt]) if plain else None
        if roles in self._rendered_roles:
            return None
        try:
            self.answered(prompt, answers, row) if answers else self.prompt(prompt, row)
        except RefusedRow as refused:
            return refused.reason
        if roles:
            self._rendered_roles.add(roles)
        return None

    def source(self, row: int = 0) -> str:
        """The Jinja template of a row."""
        draw = derive_seed(self.seed, "template", row) if len(self.sources) > 1 else 0
        return self.sources[draw % len(self.sources)]

    def answered(
        self, prompt: Sequence[Message], answers: Sequence[Answer], row: int
    ) -> tuple[str, list[RenderedAnswer]]:
        """A prompt and its answers as text."""
        self._check(prompt, row)
        skeleton = self._skeleton(prompt, row)
        if skeleton is None:
            before = self.prompt(prompt, row)
            return before, [self._answer(prompt, before, answer, row) for answer in answers]
        before = skeleton.prompt([turn.content for turn in prompt])
        end = rendering.turn_end(skeleton.tail, self.ends)
        return before, [
            RenderedAnswer(skeleton.answer(answer) + skeleton.tail[: end or 0], ended=end is not None, verbatim=False)
            if isinstance(answer, str) and self._inserts(before, answer)
            else self._answer(prompt, before, answer, row)
            for answer in answers
        ]

    def _skeleton(self, prompt: Sequence[Message], row: int) -> AnsweredSkeleton | None:
        """The texts around the contents; None if the template has to render the prompt."""
        if not all(turn.is_plain and not self.keeps_text(turn) for turn in prompt):
            return None
        return self._skeletons.answered(self.source(row), tuple(turn.role for turn in prompt))

    def _inserts(self, before: str, answer: str) -> bool:
        """Whether `_answer` leaves an answer as the template inserts it."""
        after_transcript = self.name == "plain" and before.endswith(LAST_TURN)
        return not (after_transcript or not answer or answer.isspace() or answer.lstrip().startswith("<"))

    def _answer(self, prompt: Sequence[Message], before: str, completion: Answer, row: int) -> RenderedAnswer:
        """The answer after a prompt that renders as `before`.

        Uses the template's rendering if it continues `before`, else the answer as given: some templates render a prompt
        with an answer differently (DeepSeek-R1 and Nemotron open <think> in the prompt) or remove thinking.
        """
        if isinstance(completion, Message):
            whole = self._render(self._with_answer(prompt, completion), row)
            return tool_templates.answer_after(before, whole, self.ends, row=row)
        if self.name == "plain" and before.endswith(LAST_TURN) and not completion[:1].isspace():
            completion = f" {completion}"
        _, tail = self.answer_affixes(prompt, before, row)
        whole = self._render(self._with_answer(prompt, completion), row)
        repeats_tag = rendering.may_repeat_tag(before, completion)
        text = rendering.continued(before, self._render(prompt, row), completion) if repeats_tag else completion
        verbatim = whole != before + text + tail
        written = whole[len(before) :].removesuffix(tail)
        follows = whole.startswith(before) and whole.endswith(tail) and rendering.contains(written, completion)
        if follows and text == completion:
            text, verbatim = written, False
        end = rendering.turn_end(tail, self.ends)
        return RenderedAnswer(text + tail[: end or 0], ended=end is not None, verbatim=verbatim)

    def answer_affixes(self, prompt: Sequence[Message], before: str, row: int) -> tuple[str, str]:
        """Text that the template adds before and after an answer; empty before it unless it continues the prompt."""
        probe = self._render(self._with_answer(prompt, ANSWER), row)
        start, found, tail = probe.rpartition(ANSWER)
        if not found:
            raise RowError(row, OMITTED)
        return (start[len(before) :] if start.startswith(before) else ""), tail

    def after_answer(self, replies: Messages, row: int) -> str:
        """The text that the template adds after an ended answer: `replies`, and the opening of the next answer.

        Taken from the text behind a placeholder, so it does not depend on the answer. Results of tools follow calls.
        """
        results = [reply for reply in replies if reply.role == "tool"]
        calls = tuple({"name": reply.name, "arguments": {}, "id": reply.tool_call_id} for reply in results)
        turns = (QUESTION, Message("assistant", ANSWER, tool_calls=calls))
        ended = rendering.turn_end(self._render(turns, row).rpartition(ANSWER)[2], self.ends) is not None
        _, found, after = self._render((*turns, *replies), row, prompt=True).partition(ANSWER)
        if not found:
            raise RowError(row, OMITTED)
        return after[(rendering.turn_end(after, self.ends) if ended else 0) or 0 :]

    def _with_answer(self, prompt: Sequence[Message], completion: Answer) -> Messages:
        """A prompt with its answer, which extends the last message if that is a prefill."""
        answer = as_message(completion)
        if not self._continues(prompt):
            return (*prompt, answer)
        return (*prompt[:-1], replace(answer, content=prompt[-1].content + answer.content))

    def _continues(self, prompt: Sequence[Message]) -> bool:
        return bool(prompt) and prompt[-1].prefill and not self.keeps_text(prompt[-1])

    def keeps_text(self, turn: Message) -> bool:
        """True for a turn of a transcript under the plain template, which adds no speaker itself."""
        return self.name == "plain" and turn.written is not None

    def _render(self, messages: Sequence[Message], row: int, *, prompt: bool = False) -> str:
        return self._rendered(messages, row, prompt=prompt)[0]

    def _rendered(
        self, messages: Sequence[Message], row: int, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, rendering.Spans]:
        """A conversation as text, and with `marks` the spans between generation marks."""
        turns = [
            # As a user turn, because the plain template ends assistant turns with the end token.
            {"role": "user", "content": turn.written or ""} if self.keeps_text(turn) else rendering.as_mapping(turn)
            for turn in without_tools(messages)
        ]
        continues = prompt and self._continues(messages)
        if not (marks or continues or tool_templates.needed(messages)):
            filled = self._skeletons.fill(self.source(row), turns, prompt=prompt)
            if filled is not None:
                return filled, []
        self._check(messages, row)
        try:
            return rendering.render(
                self.source(row),
                turns,
                self.tokenizer.special_tokens_map,
                tools=tool_templates.tools_of(messages),
                prompt=prompt,
                continues=continues,
                marks=marks,
            )
        except TemplateRefusal as refusal:
            raise RefusedRow(row, refusal) from None

    def _check(self, messages: Sequence[Message], row: int) -> None:
        """Raises RowError if the template of a row does not render a part of the conversation."""
        try:
            tool_templates.check(messages, lambda: self._rendered_parts(self.source(row)), self.tokenizer)
        except ConfigError as problem:
            raise RowError(row, str(problem)) from None

    def _rendered_parts(self, source: str) -> frozenset[str]:
        if source not in self._parts:
            self._parts[source] = tool_templates.rendered_parts(source, self.tokenizer.special_tokens_map)
        return self._parts[source]

    def answer_spans(self, messages: Messages, before: str, row: int) -> rendering.Spans:
        """Spans of the earlier answers in `before`, the rendered prompt of the last answer: characters, including the
        end-of-turn tokens.

        Taken from the template's generation marks, else from rendering up to each answer. The span is empty if the
        template renders the answer differently later in the conversation: that text was not sampled.
        """
        *prompt, last = messages
        if rendering.GENERATION_MARK.search(self.source(row)):
            whole, spans = self._rendered(self._with_answer(prompt, as_answer(last)), row, marks=True)
            if not whole.startswith(before):
                spans = self._rendered(prompt, row, prompt=True, marks=True)[1]
            # A prefill is part of the prompt: its span ends after `before`.
            return rendering.extend_to_turn_ends(before, [span for span in spans if span[1] <= len(before)], self.ends)
        spans, at = [], 0
        for place, turn in enumerate(prompt):
            if turn.role == "assistant" and not turn.prefill and not self.keeps_text(turn):
                with_prefill, (answer,) = self.answered(prompt[:place], (as_answer(turn),), row)
                text = with_prefill + answer.text
                kept = before.startswith(text)
                spans.append((len(with_prefill), len(text)) if kept else (at, at))
                at = spans[-1][1]
                if not kept:
                    self.notes[REWRITTEN] = None
        return spans
