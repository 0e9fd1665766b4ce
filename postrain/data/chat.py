"""Chat templates and tokenization, shared by training, evaluation, rollouts and export.

Every template, also `plain`, is a Jinja chat template on the tokenizer, so an exported model includes the template it
was trained with. Prompt and completion are tokenized separately, so training and sampling see the same prompt tokens,
and no token spans the boundary. An answer ends with its first end-of-turn token, where sampling stops. Text that the
template adds after this token, such as a line break, belongs to the next turn and is not in the loss. Loss masks
follow from these boundaries, never from a search for token ids. Not included: images and truncation (encode.py).

L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from postrain.data import rendering, tool_templates
from postrain.data.conversation import LAST_TURN, Answer, Message, Messages, as_answer, as_message, without_tools
from postrain.data.rendering import ANSWER, INSTRUCTION, REWRITTEN, VERBATIM, RenderedAnswer
from postrain.data.skeletons import Skeletons
from postrain.data.tokenizing import Encoding, PieceTokenizer, finish
from postrain.errors import ConfigError
from postrain.seeds import derive_seed

JOINED = (
    "the plain template writes answers directly after their prompts, with nothing in between; for instructions set "
    "data.template=alpaca, for text to continue put a space or line break at the end of the prompts"
)


class Template:
    """Converts messages to token ids and back.

    `auto` uses the tokenizer's chat template, or `plain` if it has none; `chat` requires one; the name of one of the
    tokenizer's templates selects it. `tools` is the tokenizer's template (else alpaca), with tools as text unless it
    renders them itself. `plain` joins the messages unchanged, for a base model that continues text.
    `random` draws one of five instruction templates for each row and keeps the tokenizer's template (else alpaca) for
    inference.
    """

    def __init__(
        self, tokenizer: Any, *, mode: str = "auto", seed: int = 0, eos_ids: Iterable[int] = (), install: bool = True
    ) -> None:
        """`install` sets the tokenizer's chat_template; `eos_ids` are further end tokens, from a generation config."""
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no eos_token, so an answer cannot end; set one in its config")
        self.tokenizer = tokenizer
        self.seed = seed
        self.notes: dict[str, None] = {}
        """Notes on the encoded rows for the console: an ordered set."""
        self.name, own = rendering.choose(tokenizer, mode)
        self._adds_bos = rendering.adds_bos(tokenizer)
        self.tokenize = PieceTokenizer(tokenizer)
        self._skeletons = Skeletons(tokenizer)
        if self.name == "tools":
            own = tool_templates.with_tools(own, tokenizer, bos=self._adds_bos)
        names = INSTRUCTION if self.name == "random" else (self.name,)
        self._sources = tuple(own or rendering.bundled(name, bos=self._adds_bos) for name in names)
        if install and not (self.name == "random" and tokenizer.chat_template):
            rendering.install(tokenizer, self._sources[0])
        special = rendering.special_ids(tokenizer)
        ends = (rendering.end_of_turn(source, tokenizer, self.tokenize) for source in self._sources)
        self.stop_ids: tuple[int, ...] = tuple(sorted({tokenizer.eos_token_id, *ends, *eos_ids}))
        self._ends = tuple(tokenizer.convert_ids_to_tokens(token) for token in self.stop_ids if token in special)

    def encode_prompt(self, messages: Messages, *, row: int = 0) -> Tensor:
        """Ids of the prompt up to the first generated token, [L]; a prefill is part of it."""
        return finish(self.prompt(messages, row=row), self.tokenize)

    def prompt(self, messages: Messages, *, row: int = 0) -> Encoding[Tensor]:
        """`encode_prompt` for many rows at once."""
        (ids,) = yield [(self._render(messages, row, prompt=True), True)]
        return _tensor(ids)

    def encode_completion(self, prompt: Messages, completion: Answer, *, row: int = 0) -> tuple[Tensor, Tensor]:
        """Ids of the prompt and of its completion with its end token, [L] each."""
        before, (after,) = self.encode_completions(prompt, (completion,), row=row)
        return before, after

    def encode_completions(
        self, prompt: Messages, completions: Sequence[Answer], *, row: int = 0
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Ids of a prompt and of several completions of it, each with its end token."""
        return finish(self.completions(prompt, completions, row=row), self.tokenize)

    def completions(
        self, prompt: Messages, completions: Sequence[Answer], *, row: int = 0
    ) -> Encoding[tuple[Tensor, tuple[Tensor, ...]]]:
        """`encode_completions` for many rows at once."""
        before = self._render(prompt, row, prompt=True)
        answers = [self._final_answer(prompt, before, completion, row) for completion in completions]
        ids, *found = yield [(before, True), *((answer.text, False) for answer in answers)]
        return _tensor(ids), tuple(
            _tensor(self._with_end(answer, after)) for answer, after in zip(answers, found, strict=True)
        )

    def pieces(
        self, prompt: Messages, pieces: Sequence[str], *, row: int = 0
    ) -> Encoding[tuple[Tensor, list[Tensor], Tensor]]:
        """Ids of a prompt, of the separately tokenized pieces of its answer, and of the end of the answer, [L] each.

        Text that the template adds before an answer is part of the first piece.
        """
        before = self._render(prompt, row, prompt=True)
        head, tail = self._answer_affixes(prompt, before, row)
        texts = [head + piece if place == 0 else piece for place, piece in enumerate(pieces)]
        end = rendering.turn_end(tail, self._ends)
        found = yield [(before, True), *((text, False) for text in (*texts, tail[: end or 0]))]
        first, *between, last = map(_tensor, found)
        return first, between, last if end is not None else _tensor([self.tokenizer.eos_token_id])

    def encode(self, messages: Messages, *, row: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Ids of a conversation that ends with an answer, int64 [L]; True in answers with their end tokens, bool [L];
        True in answers of weight 0, bool [L].
        """
        return finish(self.conversation(messages, row=row), self.tokenize)

    def conversation(self, messages: Messages, *, row: int = 0) -> Encoding[tuple[Tensor, Tensor, Tensor]]:
        """`encode` for many rows at once."""
        *prompt, answer = messages
        before = self._render(prompt, row, prompt=True)
        last = self._final_answer(prompt, before, as_answer(answer), row)
        spans = self._spans(messages, before, row)
        zero_weight = self._zero_weight_answers(messages, len(spans) + 1, row)
        segments = [(text, number) for text, number in rendering.segments(before, spans) if text]
        *parts, last_ids = yield [*((text, at == 0) for at, (text, _) in enumerate(segments)), (last.text, False)]
        # Index of the answer that a token is part of, -1 between answers.
        answer_of = [number for (_, number), ids in zip(segments, parts, strict=True) for _ in ids]
        last_ids = self._with_end(last, last_ids)
        answer_L = _tensor([*answer_of, *[len(spans)] * len(last_ids)])
        ids_L = _tensor([*(token for ids in parts for token in ids), *last_ids])
        return ids_L, answer_L >= 0, torch.isin(answer_L, _tensor(zero_weight))

    def _zero_weight_answers(self, messages: Messages, spans: int, row: int) -> list[int]:
        """Indices of the answers with weight 0. Raises ConfigError if the spans are not one per answer."""
        answers = [
            turn for turn in messages if turn.role == "assistant" and not (turn.prefill or self._keeps_text(turn))
        ]
        found = [number for number, answer in enumerate(answers) if not answer.in_loss]
        if found and spans != len(answers):
            raise ConfigError(
                f"row {row}: the template {self.name} marks {spans} spans for {len(answers)} answers, so an answer "
                "with weight 0 cannot be separated from the others; use another data.template, or remove the weights"
            )
        return found

    def encode_text(self, text: str) -> Tensor:
        """Ids of a document with the bos token that the tokenizer adds, without an end token, [L]."""
        return finish(self.text(text), self.tokenize)

    def text(self, text: str) -> Encoding[Tensor]:
        """`encode_text` for many rows at once."""
        (ids,) = yield [(text, True)]
        return _tensor([self.tokenizer.bos_token_id, *ids] if self._adds_bos else ids)

    def encode_continuation(self, text: str) -> Tensor:
        """Ids of text inside a row (a tool's output), without an end token, [L]."""
        return _tensor(self.tokenize([(text, False)])[0])

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of a completion, without special tokens and surrounding whitespace (`plain` keeps whitespace)."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if self.name == "plain" else text.strip()

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of tokens with special tokens, for the search of stop texts."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def source(self, row: int = 0) -> str:
        """The Jinja template of a row."""
        draw = derive_seed(self.seed, "template", row) if len(self._sources) > 1 else 0
        return self._sources[draw % len(self._sources)]

    def _render_answer(self, prompt: Sequence[Message], before: str, completion: Answer, row: int) -> RenderedAnswer:
        """The answer after a prompt that renders as `before`.

        Uses the template's rendering if it continues `before`, else the answer as given: some templates render a prompt
        with an answer differently (DeepSeek-R1 and Nemotron open <think> in the prompt) or remove thinking.
        """
        if isinstance(completion, Message):
            whole = self._render(self._answered(prompt, completion), row)
            return tool_templates.answer_after(before, whole, self._ends, row=row)
        if self.name == "plain" and before.endswith(LAST_TURN) and not completion[:1].isspace():
            completion = f" {completion}"
        _, tail = self._answer_affixes(prompt, before, row)
        whole = self._render(self._answered(prompt, completion), row)
        repeats_tag = rendering.may_repeat_tag(before, completion)
        text = rendering.continued(before, self._render(prompt, row), completion) if repeats_tag else completion
        verbatim = whole != before + text + tail
        written = whole[len(before) :].removesuffix(tail)
        follows = whole.startswith(before) and whole.endswith(tail) and rendering.contains(written, completion)
        if follows and text == completion:
            text, verbatim = written, False
        end = rendering.turn_end(tail, self._ends)
        return RenderedAnswer(text + tail[: end or 0], ended=end is not None, verbatim=verbatim)

    def _final_answer(self, prompt: Sequence[Message], before: str, completion: Answer, row: int) -> RenderedAnswer:
        """The last answer of a row; adds the notes on answers used as given, and on answers that follow unseparated."""
        answer = self._render_answer(prompt, before, completion, row)
        if answer.verbatim:
            self.notes[VERBATIM] = None
        question = prompt[-1].content if prompt and not prompt[-1].prefill else ""
        if self.name == "plain" and question and not (before[-1:].isspace() or answer.text[:1].isspace()):
            self.notes[JOINED] = None
        return answer

    def _with_end(self, answer: RenderedAnswer, ids: list[int]) -> list[int]:
        """The ids of an answer with its end token."""
        return ids if answer.ended else [*ids, self.tokenizer.eos_token_id]

    def _answer_affixes(self, prompt: Sequence[Message], before: str, row: int) -> tuple[str, str]:
        """Text that the template adds before and after an answer; empty before it unless it continues the prompt."""
        probe = self._render(self._answered(prompt, ANSWER), row)
        start, found, tail = probe.rpartition(ANSWER)
        if not found:
            raise ConfigError(
                f"row {row}: the chat template omits the assistant's message; use data.template=plain or another"
            )
        return (start[len(before) :] if start.startswith(before) else ""), tail

    def _answered(self, prompt: Sequence[Message], completion: Answer) -> Messages:
        """A prompt with its answer, which extends the last message if that is a prefill."""
        answer = as_message(completion)
        if not self._continues(prompt):
            return (*prompt, answer)
        return (*prompt[:-1], replace(answer, content=prompt[-1].content + answer.content))

    def _continues(self, prompt: Sequence[Message]) -> bool:
        return bool(prompt) and prompt[-1].prefill and not self._keeps_text(prompt[-1])

    def _keeps_text(self, turn: Message) -> bool:
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
            {"role": "user", "content": turn.written or ""} if self._keeps_text(turn) else rendering.as_mapping(turn)
            for turn in without_tools(messages)
        ]
        continues = prompt and self._continues(messages)
        if not (marks or continues or tool_templates.needed(messages)):
            filled = self._skeletons.fill(self.source(row), turns, prompt=prompt)
            if filled is not None:
                return filled, []
        try:
            tool_templates.check(messages, self.source(row), self.tokenizer)
            return rendering.render(
                self.source(row),
                turns,
                self.tokenizer.special_tokens_map,
                tools=tool_templates.tools_of(messages),
                prompt=prompt,
                continues=continues,
                marks=marks,
            )
        except ConfigError as problem:
            raise ConfigError(f"row {row}: {problem}") from None

    def _spans(self, messages: Messages, before: str, row: int) -> rendering.Spans:
        """Spans of the earlier answers in `before`, the rendered prompt of the last answer: characters, including the
        end-of-turn tokens.

        Taken from the template's generation marks, else from rendering up to each answer. The span is empty if the
        template renders the answer differently later in the conversation: that text was not sampled.
        """
        *prompt, answer = messages
        if rendering.GENERATION_MARK.search(self.source(row)):
            whole, spans = self._rendered(self._answered(prompt, as_answer(answer)), row, marks=True)
            if not whole.startswith(before):
                spans = self._rendered(prompt, row, prompt=True, marks=True)[1]
            # A prefill is part of the prompt: its span ends after `before`.
            return rendering.extend_to_turn_ends(before, [span for span in spans if span[1] <= len(before)], self._ends)
        spans, at = [], 0
        for place, turn in enumerate(prompt):
            if turn.role == "assistant" and not turn.prefill and not self._keeps_text(turn):
                with_prefill = self._render(prompt[:place], row, prompt=True)
                text = with_prefill + self._render_answer(prompt[:place], with_prefill, as_answer(turn), row).text
                kept = before.startswith(text)
                spans.append((len(with_prefill), len(text)) if kept else (at, at))
                at = spans[-1][1]
                if not kept:
                    self.notes[REWRITTEN] = None
        return spans


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long)
