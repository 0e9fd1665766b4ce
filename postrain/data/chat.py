"""Text to tokens and back, in one object that training, evaluation, rollouts and export share.

Every template is a Jinja chat template on the tokenizer, the plain one too, so that an exported model carries the one
it was trained with. Prompt and completion are tokenised apart, at the very place where the model will start to write:
what is trained on is what is sampled from, whatever the tokenizer would have merged across that place. Masks come from
that place, never from a search for tokens or from `id == pad`. Leaves out tools, images and truncation (encode.py).

L tokens of a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers.utils.chat_template_utils import render_jinja_template

from postrain.data.records import Message, Messages
from postrain.ops import derive_seed
from postrain.types import ConfigError

Mode = Literal["auto", "chat", "plain", "alpaca", "vicuna", "qa", "dialogue", "inst", "bot", "random"]
INSTRUCTION = ("alpaca", "vicuna", "qa", "dialogue", "inst")
"""The templates that `random` mixes; `bot` is left out, so that there is one to ask in that nobody has learned."""
TEMPLATES = Path(__file__).parent / "templates"
GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
PROBE = (Message("user", "a"), Message("assistant", "b"))
ANSWER = "¶"
"""Stands for an answer where only what a template writes around it is wanted; in no template itself."""


class Template:
    """How messages become token ids.

    `auto` is the tokenizer's own template, or plain where it has none; `chat` insists on its own; `plain` writes the
    messages as they stand, for a base model that continues text; `random` draws one of five instruction templates for
    each row, and leaves the model's own (else alpaca) on the tokenizer for inference.
    """

    def __init__(
        self, tokenizer: Any, *, mode: Mode = "auto", seed: int = 0, eos_ids: Iterable[int] = (), install: bool = True
    ) -> None:
        """`install` puts the template on the tokenizer; `eos_ids` are further end tokens, from a generation config."""
        if tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no eos_token, so an answer cannot end; set one in its config")
        self.tokenizer = tokenizer
        self.seed = seed
        own = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
        self.name = _resolve(mode, own)
        self._adds_bos = _adds_bos(tokenizer)
        self._joins = tokenizer.tokenize("a")[0].startswith("▁")
        names = INSTRUCTION if self.name == "random" else (self.name,)
        self._sources = tuple(own if name == "chat" and own else self._bundled(name) for name in names)
        if install:
            tokenizer.chat_template = (own or self._sources[0]) if self.name == "random" else self._sources[0]
        ends = (self._end_of_turn(source) for source in self._sources)
        self.stop_ids: tuple[int, ...] = tuple(sorted({tokenizer.eos_token_id, *ends, *eos_ids}))

    def encode_prompt(self, messages: Messages, *, row: int = 0) -> Tensor:
        """The ids after which the model writes its answer, [L]."""
        return _tensor(self._ids(self._render(messages, row, prompt=True), first=True))

    def encode_completion(self, prompt: Messages, completion: str, *, row: int = 0) -> tuple[Tensor, Tensor]:
        """Ids of the prompt and of its completion with the token that ends it, [L] each."""
        before, (after,) = self.encode_completions(prompt, (completion,), row=row)
        return before, after

    def encode_completions(
        self, prompt: Messages, completions: Sequence[str], *, row: int = 0
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Ids of a prompt and of several completions of it.

        Raises ConfigError where the template writes the prompt differently once there is an answer.
        """
        before = self._render(prompt, row, prompt=True)
        afters = (self._answer(prompt, before, completion, row) for completion in completions)
        return _tensor(self._ids(before, first=True)), tuple(map(_tensor, afters))

    def encode_pieces(
        self, prompt: Messages, pieces: Sequence[str], *, row: int = 0
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Ids of a prompt, of the pieces of its answer, each tokenised by itself, and of what ends it, [L] each.

        What the template writes before an answer is part of the first piece.
        """
        before = self._render(prompt, row, prompt=True)
        head, _, tail = self._after(prompt, before, ANSWER, row).partition(ANSWER)
        texts = [head + piece if place == 0 else piece for place, piece in enumerate(pieces)]
        ended = self._ended(self._ids(tail))
        return _tensor(self._ids(before, first=True)), [_tensor(self._ids(text)) for text in texts], _tensor(ended)

    def _answer(self, prompt: Messages, before: str, completion: str, row: int) -> list[int]:
        """Ids of what the template writes after the prompt."""
        return self._ended(self._ids(self._after(prompt, before, completion, row)))

    def _after(self, prompt: Messages, before: str, completion: str, row: int) -> str:
        """What the template writes after the prompt, which it writes as `before`."""
        whole = self._render((*prompt, Message("assistant", completion)), row)
        if not whole.startswith(before):
            raise ConfigError(
                f"row {row}: the template {self.name} writes the prompt differently once it is answered, so no mask "
                "can tell them apart; use data.template=plain or another template"
            )
        return whole[len(before) :]

    def encode(self, messages: Messages, *, row: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Ids of a whole conversation, [L]; where an assistant speaks, its end tokens included, bool [L]; and where
        that is an answer with weight 0, bool [L].
        """
        whole = self._render(messages, row)
        spans = self._spans(messages, whole, row)
        weightless = self._weightless(messages, len(spans), row)
        ids: list[int] = []
        answer_of: list[int] = []  # the number of the answer that a token is part of, −1 between answers
        for text, answer in _segments(whole, spans):
            part = self._ids(text, first=not ids)
            numbers = [answer] * len(part)
            # Some templates put the end of the turn after the mark; the model still has to say it.
            if part and answer < 0 and answer_of and part[0] in self.stop_ids:
                numbers[0] = answer_of[-1]
            ids += part
            answer_of += numbers
        ended = self._ended(ids)
        answer_L = _tensor([*answer_of, len(spans) - 1][: len(ended)])
        return _tensor(ended), answer_L >= 0, torch.isin(answer_L, _tensor(weightless))

    def _weightless(self, messages: Messages, spans: int, row: int) -> list[int]:
        """The numbers of the answers that are not learned."""
        answers = [message for message in messages if message.role == "assistant"]
        found = [number for number, answer in enumerate(answers) if not answer.learned]
        if found and spans != len(answers):
            raise ConfigError(
                f"row {row}: the template {self.name} marks {spans} stretches for {len(answers)} answers, so an answer "
                "with weight 0 cannot be told from the others; use another data.template, or remove the weights"
            )
        return found

    def encode_text(self, text: str) -> Tensor:
        """Ids of running text as the tokenizer starts a document, without an end, [L]."""
        bos = [self.tokenizer.bos_token_id] if self._adds_bos else []
        return _tensor(bos + self._ids(text, first=True))

    def encode_more(self, text: str) -> Tensor:
        """Ids of text that goes on within a row (what a tool answers), without an end, [L]."""
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

    def _bundled(self, name: str) -> str:
        source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
        return "{{ bos_token }}" + source if self._adds_bos else source

    def _render(self, messages: Messages, row: int, *, prompt: bool = False) -> str:
        return self._rendered(self.source(row), messages, row, prompt=prompt)[0]

    def _rendered(
        self, source: str, messages: Messages, row: int, *, prompt: bool = False, marks: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """A conversation as text, and the places between generation marks if asked for."""
        try:
            texts, spans = render_jinja_template(
                conversations=[[{"role": message.role, "content": message.content} for message in messages]],
                chat_template=source,
                return_assistant_tokens_mask=marks,
                add_generation_prompt=prompt,
                **self.tokenizer.special_tokens_map,
            )
        except TemplateError as error:
            raise ConfigError(f"row {row}: the chat template refuses the conversation: {error}") from None
        return texts[0], [(int(start), int(end)) for start, end in spans[0]] if marks else []

    def _spans(self, messages: Messages, whole: str, row: int) -> list[tuple[int, int]]:
        """Where an assistant speaks, in characters: by the template's marks, else by rendering up to each answer."""
        source = self.source(row)
        if GENERATION_MARK.search(source):
            return self._rendered(source, messages, row, marks=True)[1]
        spans = []
        for place, message in enumerate(messages):
            if message.role == "assistant":
                before = self._render(messages[:place], row, prompt=True)
                after = self._render(messages[: place + 1], row)
                if not (whole.startswith(after) and after.startswith(before)):
                    raise ConfigError(
                        f"row {row}: the template {self.name} rewrites earlier turns and has no generation marks, so "
                        "the answers cannot be told apart; use data.loss_on=completion or another template"
                    )
                spans.append((len(before), len(after)))
        return spans

    def _ids(self, text: str, *, first: bool = False) -> list[int]:
        """Ids of a piece of a row, no special tokens added."""
        if not text:
            return []
        if first or not self._joins:
            return self._tokenised(text)
        # Tokenizers that open every text with a space (▁) must not do so in the middle of a row.
        lead = self._tokenised("\n")
        return self._tokenised("\n" + text)[len(lead) :]

    def _tokenised(self, text: str) -> list[int]:
        # Not verbose: texts longer than the context are cut later, and counted.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

    def _ended(self, ids: list[int]) -> list[int]:
        """The ids up to the last end token; eos is added where the template writes none."""
        ends = [place for place, token in enumerate(ids) if token in self.stop_ids]
        return ids[: ends[-1] + 1] if ends else [*ids, self.tokenizer.eos_token_id]

    def _end_of_turn(self, source: str) -> int:
        """The special token the template ends an answer with; eos where it has none."""
        before = self._rendered(source, PROBE[:1], 0, prompt=True)[0]
        after = self._rendered(source, PROBE, 0)[0][len(before) :]
        special = {*self.tokenizer.all_special_ids, *self.tokenizer.added_tokens_decoder}
        said = self._ids(after.partition(PROBE[1].content)[2])
        return next((token for token in said if token in special), self.tokenizer.eos_token_id)


def _resolve(mode: Mode, own: str | None) -> str:
    """The template a mode comes to: `chat` is the tokenizer's own."""
    if mode == "auto":
        return "chat" if own else "plain"
    if mode == "chat" and own is None:
        raise ConfigError(
            f"data.template=chat: the tokenizer has no chat template; use plain, bot or one of {', '.join(INSTRUCTION)}"
        )
    return mode


def _adds_bos(tokenizer: Any) -> bool:
    """True for a tokenizer that starts every text with a beginning-of-sequence token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id


def _segments(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[str, int]]:
    """The text cut at the ends of spans; each piece with the number of its span, −1 between them."""
    pieces: list[tuple[str, int]] = []
    at = 0
    for number, (start, end) in enumerate(spans):
        pieces += [(text[at:start], -1), (text[start:end], number)]
        at = end
    return [*pieces, (text[at:], -1)]


def _tensor(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.long)
