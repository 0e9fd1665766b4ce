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
from typing import Any

import numpy as np
import torch
from torch import Tensor

from postrain.data import rendering, template_choice, tool_templates
from postrain.data.conversation import Answer, Message, Messages, as_answer
from postrain.data.conversation_texts import ConversationTexts
from postrain.data.rendering import VERBATIM, RenderedAnswer
from postrain.data.template_choice import INSTRUCTION
from postrain.data.tokenizing import Encoding, PieceTokenizer, finish
from postrain.errors import ConfigError, RowError
from postrain.models.end_tokens import end_ids

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

    def __init__(self, tokenizer: Any, *, mode: str = "auto", seed: int = 0, install: bool = True) -> None:
        """`install` sets the tokenizer's chat_template."""
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no eos_token, so an answer cannot end; set one in its config")
        self.tokenizer = tokenizer
        self.seed = seed
        self.notes: dict[str, None] = {}
        """Notes on the encoded rows for the console: an ordered set."""
        self.name, own = template_choice.choose(tokenizer, mode)
        self._adds_bos = template_choice.adds_bos(tokenizer)
        self.tokenize = PieceTokenizer(tokenizer)
        if self.name == "tools":
            own = tool_templates.with_tools(own, tokenizer, bos=self._adds_bos)
        names = INSTRUCTION if self.name == "random" else (self.name,)
        sources = tuple(own or template_choice.bundled(name, bos=self._adds_bos) for name in names)
        if install and not (self.name == "random" and tokenizer.chat_template):
            template_choice.install(tokenizer, sources[0])
        special = rendering.special_ids(tokenizer)
        ends = [rendering.end_of_turn(source, tokenizer, self.tokenize) for source in sources]
        self.end_id = ends[0]
        """The token with which the template ends an answer."""
        further = special.intersection(end_ids(tokenizer))  # a generation config may name ids of another tokenizer
        self.stop_ids: tuple[int, ...] = tuple(sorted({tokenizer.eos_token_id, *ends, *further}))
        """The tokens that end an answer: EOS, those of the templates and those of the model's generation config."""
        self.ends: tuple[str, ...] = tuple(
            tokenizer.convert_ids_to_tokens(token) for token in self.stop_ids if token in special
        )
        """Those of `stop_ids` that are special tokens, as text."""
        self._texts = ConversationTexts(self.name, sources, tokenizer, seed, self.ends, self.notes)

    def encode_prompt(self, messages: Messages, *, row: int = 0) -> Tensor:
        """Ids of the prompt up to the first generated token, [L]; a prefill is part of it."""
        return finish(self.prompt(messages, row=row), self.tokenize)

    def prompt(self, messages: Messages, *, row: int = 0) -> Encoding[Tensor]:
        """`encode_prompt` for many rows at once."""
        (ids,) = yield [(self._texts.prompt(messages, row), True)]
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
        before, answers = self._texts.answered(prompt, completions, row)
        self._note(prompt, before, answers)
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
        before = self._texts.prompt(prompt, row)
        head, tail = self._texts.answer_affixes(prompt, before, row)
        texts = [head + piece if place == 0 else piece for place, piece in enumerate(pieces)]
        end = rendering.turn_end(tail, self.ends)
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
        before, (last,) = self._texts.answered(prompt, (as_answer(answer),), row)
        self._note(prompt, before, [last])
        spans = self._texts.answer_spans(messages, before, row)
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
        """Indices of the answers with weight 0. Raises RowError if the spans are not one per answer."""
        answers = [
            turn for turn in messages if turn.role == "assistant" and not (turn.prefill or self._texts.keeps_text(turn))
        ]
        found = [number for number, answer in enumerate(answers) if not answer.in_loss]
        if found and spans != len(answers):
            raise RowError(
                row,
                f"the template {self.name} marks {spans} spans for {len(answers)} answers, so an answer "
                "with weight 0 cannot be separated from the others; use another data.template, or remove the weights",
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
        """Ids of text inside a row (a tool's output), without an end token, [L]; lone surrogates become `?`."""
        return _tensor(self.tokenize([(text.encode("utf-8", "replace").decode(), False)])[0])

    def encode_replies(self, replies: Messages, *, row: int = 0) -> Tensor:
        """Ids between the end token of an answer and the first token of the next one, [L]: the messages `replies` with
        the template's role headers. The answer itself is not encoded again."""
        return self.encode_continuation(self._texts.after_answer(replies, row))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of a completion, without special tokens and surrounding whitespace (`plain` keeps whitespace)."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if self.name == "plain" else text.strip()

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of tokens with special tokens, for the search of stop texts."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def refusal(self, prompt: Messages, answers: Sequence[Answer], *, row: int = 0) -> str | None:
        """The message with which the template refuses a conversation; None if it renders it."""
        return self._texts.refusal(prompt, answers, row)

    def source(self, row: int = 0) -> str:
        """The Jinja template of a row."""
        return self._texts.source(row)

    def _note(self, prompt: Sequence[Message], before: str, answers: Iterable[RenderedAnswer]) -> None:
        """Adds the notes on final answers used as given, and on answers that follow unseparated."""
        question = prompt[-1].content if prompt and not prompt[-1].prefill else ""
        for answer in answers:
            if answer.verbatim:
                self.notes[VERBATIM] = None
            if self.name == "plain" and question and not (before[-1:].isspace() or answer.text[:1].isspace()):
                self.notes[JOINED] = None

    def _with_end(self, answer: RenderedAnswer, ids: list[int]) -> list[int]:
        """The ids of an answer with its end token."""
        return ids if answer.ended else [*ids, self.tokenizer.eos_token_id]


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.from_numpy(np.array(ids, np.int64))  # an eighth of the time of torch.tensor
