"""Text to tokens and back, in one object that training, evaluation, rollouts and export share.

Every template is a Jinja chat template on the tokenizer, the plain one too, so that an exported model carries the one
it was trained with. Prompt and completion are tokenised apart, at the very place where the model will start to write:
what is trained on is what is sampled from, whatever the tokenizer would have merged across that place. An answer ends
with the first token that ends a turn, where sampling stops; what a template writes behind it (a line break) opens the
next turn and is not learned. Masks come from these places, never from a search for tokens or from `id == pad`. Leaves
out tools, images and truncation (encode.py).

L tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from postrain.data import rendering
from postrain.data.conversation import LAST_TURN, Message, Messages
from postrain.data.rendering import INSTRUCTION
from postrain.errors import ConfigError
from postrain.seeds import derive_seed

QUESTION = (Message("user", "a"),)
ANSWER = "¶"
"""Stands for an answer where only what a template writes around it is wanted; in no template itself."""
VERBATIM = (
    "the chat template writes answers in another way than its own prompt leads to (it moves or leaves out thinking); "
    "answers are learned as they stand, right after the prompt that is sampled from"
)
REWRITTEN = (
    "the chat template rewrites earlier answers of a conversation and marks none; with data.loss_on=assistant only "
    "answers that stand as they were sampled are learned"
)


@dataclass(frozen=True)
class RenderedAnswer:
    """An answer as the template renders it after a prompt."""

    text: str
    """The answer, through the token that ends its turn where the template writes one."""
    ended: bool
    """False where the template writes no such token; the end token has to follow."""
    verbatim: bool
    """True where the template would write the answer in a way that its own prompt does not lead to."""


class Template:
    """How messages become token ids.

    `auto` is the tokenizer's own template, or plain where it has none; `chat` insists on its own; the name of one of
    its templates chooses that one. `plain` writes the messages as they stand, for a base model that continues text;
    `random` draws one of five instruction templates for each row, and leaves the model's own (else alpaca) on the
    tokenizer for inference.
    """

    def __init__(
        self, tokenizer: Any, *, mode: str = "auto", seed: int = 0, eos_ids: Iterable[int] = (), install: bool = True
    ) -> None:
        """`install` puts the template on the tokenizer; `eos_ids` are further end tokens, from a generation config."""
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no eos_token, so an answer cannot end; set one in its config")
        self.tokenizer = tokenizer
        self.seed = seed
        self.notes: dict[str, None] = {}
        """What a reader has to know about the rows that were encoded; a mapping keeps order and says each once."""
        self.name, own = rendering.choose(tokenizer, mode)
        self._adds_bos = rendering.adds_bos(tokenizer)
        self._prefixes_space = tokenizer.tokenize("a")[0].startswith("▁")
        names = INSTRUCTION if self.name == "random" else (self.name,)
        self._sources = tuple(
            own if name == "chat" and own else rendering.bundled(name, bos=self._adds_bos) for name in names
        )
        if install and not (self.name == "random" and tokenizer.chat_template):
            rendering.install(tokenizer, self._sources[0])
        ends = (self._end_of_turn(source) for source in self._sources)
        self.stop_ids: tuple[int, ...] = tuple(sorted({tokenizer.eos_token_id, *ends, *eos_ids}))
        special = self._special()
        self._ends = tuple(tokenizer.convert_ids_to_tokens(token) for token in self.stop_ids if token in special)

    def encode_prompt(self, messages: Messages, *, row: int = 0) -> Tensor:
        """The ids after which the model writes its answer, or continues its last message, [L]."""
        return _tensor(self._ids(self._render(messages, row, prompt=True), first=True))

    def encode_completion(self, prompt: Messages, completion: str, *, row: int = 0) -> tuple[Tensor, Tensor]:
        """Ids of the prompt and of its completion with the token that ends it, [L] each."""
        before, (after,) = self.encode_completions(prompt, (completion,), row=row)
        return before, after

    def encode_completions(
        self, prompt: Messages, completions: Sequence[str], *, row: int = 0
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Ids of a prompt and of several completions of it, each with the token that ends it."""
        before = self._render(prompt, row, prompt=True)
        said = [self._render_answer(prompt, before, completion, row) for completion in completions]
        return _tensor(self._ids(before, first=True)), tuple(_tensor(self._learned(one)) for one in said)

    def encode_pieces(
        self, prompt: Messages, pieces: Sequence[str], *, row: int = 0
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Ids of a prompt, of the pieces of its answer, each tokenised by itself, and of what ends it, [L] each.

        What the template writes before an answer is part of the first piece.
        """
        before = self._render(prompt, row, prompt=True)
        head, tail = self._answer_affixes(prompt, before, row)
        texts = [head + piece if place == 0 else piece for place, piece in enumerate(pieces)]
        end = rendering.turn_end(tail, self._ends)
        ended = [self.tokenizer.eos_token_id] if end is None else self._ids(tail[:end])
        return _tensor(self._ids(before, first=True)), [_tensor(self._ids(text)) for text in texts], _tensor(ended)

    def encode(self, messages: Messages, *, row: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Ids of a conversation that ends with an answer, [L]; True at the assistant's tokens with their end tokens,
        bool [L]; and where that is an answer with weight 0, bool [L].
        """
        *prompt, answer = messages
        before = self._render(prompt, row, prompt=True)
        said = self._render_answer(prompt, before, answer.content, row)
        spans = self._spans(messages, before, row)
        weightless = self._weightless(messages, len(spans) + 1, row)
        ids: list[int] = []
        answer_of: list[int] = []  # the number of the answer that a token is part of, -1 between answers
        for text, number in rendering.segments(before, spans):
            part = self._ids(text, first=not ids)
            ids += part
            answer_of += [number] * len(part)
        last = self._learned(said)
        answer_L = _tensor([*answer_of, *[len(spans)] * len(last)])
        return _tensor([*ids, *last]), answer_L >= 0, torch.isin(answer_L, _tensor(weightless))

    def _weightless(self, messages: Messages, spans: int, row: int) -> list[int]:
        """The numbers of the answers that are not learned."""
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
        """Ids of running text as the tokenizer starts a document, without an end, [L]."""
        bos = [self.tokenizer.bos_token_id] if self._adds_bos else []
        return _tensor(bos + self._ids(text, first=True))

    def encode_continuation(self, text: str) -> Tensor:
        """Ids of text inside a row (a tool's output), without an end token, [L]."""
        return _tensor(self._ids(text))

    def decode(self, ids: Tensor | Sequence[int]) -> str:
        """The text of a completion, without special tokens and without the space that opens an answer."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text if self.name == "plain" else text.strip()

    def decode_all(self, ids: Sequence[int]) -> str:
        """The text of tokens as they stand, special tokens too: what stop texts are looked for in."""
        return self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def source(self, row: int = 0) -> str:
        """The Jinja template a row is written with."""
        draw = derive_seed(self.seed, "template", row) if len(self._sources) > 1 else 0
        return self._sources[draw % len(self._sources)]

    def _render_answer(self, prompt: Sequence[Message], before: str, completion: str, row: int) -> RenderedAnswer:
        """What the model has to write after a prompt, which the template writes as `before`.

        The answer as the template writes it where that follows on the prompt, else as it stands: some templates write
        an answered prompt in another way (DeepSeek-R1 and Nemotron open <think> for the model) or leave out thinking.
        """
        if self.name == "plain" and before.endswith(LAST_TURN) and not completion[:1].isspace():
            completion = f" {completion}"
        _, tail = self._answer_affixes(prompt, before, row)
        whole = self._render(self._answered(prompt, completion), row)
        text = rendering.continued(before, self._render(prompt, row), completion)
        verbatim = whole != before + text + tail
        written = whole[len(before) :].removesuffix(tail)
        follows = whole.startswith(before) and whole.endswith(tail) and rendering.contains(written, completion)
        if follows and text == completion:
            text, verbatim = written, False
        end = rendering.turn_end(tail, self._ends)
        return RenderedAnswer(text + tail[: end or 0], ended=end is not None, verbatim=verbatim)

    def _learned(self, said: RenderedAnswer) -> list[int]:
        """Ids of the answer with its end token."""
        if said.verbatim:
            self.notes[VERBATIM] = None
        ids = self._ids(said.text)
        return ids if said.ended else [*ids, self.tokenizer.eos_token_id]

    def _answer_affixes(self, prompt: Sequence[Message], before: str, row: int) -> tuple[str, str]:
        """What the template writes before and behind an answer; before it only where that follows on the prompt."""
        probe = self._render(self._answered(prompt, ANSWER), row)
        start, found, tail = probe.rpartition(ANSWER)
        if not found:
            raise ConfigError(
                f"row {row}: the chat template leaves out the assistant's message; use data.template=plain or another"
            )
        return (start[len(before) :] if start.startswith(before) else ""), tail

    def _answered(self, prompt: Sequence[Message], completion: str) -> Messages:
        """A prompt and its answer, which may continue the assistant's last message."""
        if not self._continues(prompt):
            return (*prompt, Message("assistant", completion))
        return (*prompt[:-1], Message("assistant", prompt[-1].content + completion))

    def _continues(self, prompt: Sequence[Message]) -> bool:
        return bool(prompt) and prompt[-1].prefill and not self._keeps_text(prompt[-1])

    def _keeps_text(self, turn: Message) -> bool:
        """Whether a turn of a transcript keeps its text: the plain template has no other way to name the speaker."""
        return self.name == "plain" and turn.written is not None

    def _render(self, messages: Sequence[Message], row: int, *, prompt: bool = False) -> str:
        return self._rendered(messages, row, prompt=prompt)[0]

    def _rendered(
        self, messages: Sequence[Message], row: int, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, rendering.Spans]:
        """A conversation as text, and the places between generation marks if asked for."""
        turns = [
            # Text that the plain template must not end with the end token.
            {"role": "user", "content": turn.written or ""} if self._keeps_text(turn) else rendering.as_mapping(turn)
            for turn in messages
        ]
        try:
            return rendering.render(
                self.source(row),
                turns,
                self.tokenizer.special_tokens_map,
                prompt=prompt,
                continues=prompt and self._continues(messages),
                marks=marks,
            )
        except ConfigError as problem:
            raise ConfigError(f"row {row}: {problem}") from None

    def _spans(self, messages: Messages, before: str, row: int) -> rendering.Spans:
        """Where the assistant speaks in the prompt of the last message, written as `before`: in characters, each
        through the token that ends its turn.

        By the template's marks, else by rendering up to each answer. The span of an answer that the template has
        rewritten since is empty: it is not what was sampled.
        """
        *prompt, answer = messages
        if rendering.GENERATION_MARK.search(self.source(row)):
            whole, spans = self._rendered(self._answered(prompt, answer.content), row, marks=True)
            if not whole.startswith(before):
                spans = self._rendered(prompt, row, prompt=True, marks=True)[1]
            # What a prefill says is part of the prompt, and its stretch ends behind it.
            return rendering.extend_to_turn_ends(before, [span for span in spans if span[1] <= len(before)], self._ends)
        spans, at = [], 0
        for place, turn in enumerate(prompt):
            if turn.role == "assistant" and not turn.prefill and not self._keeps_text(turn):
                with_prefill = self._render(prompt[:place], row, prompt=True)
                text = with_prefill + self._render_answer(prompt[:place], with_prefill, turn.content, row).text
                kept = before.startswith(text)
                spans.append((len(with_prefill), len(text)) if kept else (at, at))
                at = spans[-1][1]
                if not kept:
                    self.notes[REWRITTEN] = None
        return spans

    def _ids(self, text: str, *, first: bool = False) -> list[int]:
        """Ids of a piece of a row, no special tokens added."""
        if not text:
            return []
        if first or not self._prefixes_space:
            return self._tokenised(text)
        # Tokenizers that open every text with a space (▁) must not do so in the middle of a row.
        lead = self._tokenised("\n")
        return self._tokenised("\n" + text)[len(lead) :]

    def _tokenised(self, text: str) -> list[int]:
        # Not verbose: texts longer than the context are cut later, and counted.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _end_of_turn(self, source: str) -> int:
        """The special token the template ends an answer with; eos where it has none."""
        turns = [rendering.as_mapping(turn) for turn in (*QUESTION, Message("assistant", ANSWER))]
        written = rendering.render_texts(source, turns, self.tokenizer.special_tokens_map)
        _, _, tail = written.rpartition(ANSWER)
        special = self._special()
        return next((token for token in self._ids(tail) if token in special), self.tokenizer.eos_token_id)

    def _special(self) -> set[int]:
        """Ids that stand for no text of their own."""
        return {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long)
