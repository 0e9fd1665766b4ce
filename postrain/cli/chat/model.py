"""A model that streams its answers: any causal language model, with its adapters merged.

Uses `generate` of transformers: rollout/ samples many completions in parallel and does not stream them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, TextStreamer

from postrain.cli.chat.conversation import Conversation, TruncatedConversation, as_plain_text, token_limit, truncate
from postrain.data.chat import Template
from postrain.data.conversation import Messages
from postrain.errors import ConfigError
from postrain.hardware import mps
from postrain.models.loading import load_causal, load_tokenizer
from postrain.models.quiet import quiet
from postrain.models.sources import ResolvedModel
from postrain.seeds import derive_seed

Show = Callable[[str], None]
# Control characters except line breaks and tabs: a model must not move the cursor or rename the window.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Sampling options."""

    temperature: float
    """0 is greedy."""
    top_p: float
    max_new_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ConfigError(f"temperature {self.temperature}: expected 0 or more, such as 0.7")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top-p {self.top_p}: expected a share above 0 and up to 1, such as 0.95")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max-new-tokens {self.max_new_tokens}: expected 1 or more")


@dataclass(frozen=True)
class Answer:
    """An answer of the model."""

    text: str
    stopped: bool
    """Whether Ctrl-C ended it early."""


class ChatModel:
    """Answers a conversation."""

    def __init__(self, resolved: ResolvedModel, template: str = "auto") -> None:
        """`template` is that of data.template. Raises ConfigError if the model is not a language model."""
        device = "cuda" if torch.cuda.is_available() else "cpu" if mps.missing_reason() else "mps"
        tokenizer = load_tokenizer(resolved)
        self.name, self.context = resolved.name, resolved.context
        self.template = Template(tokenizer, mode=template)
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        self.model: Any = load_causal(resolved, dtype=dtype).to(device)  # pyright: ignore[reportArgumentType]
        # `generate` would take what the settings leave open from generation_config.json, such as repetition_penalty.
        self.model.generation_config = GenerationConfig(bos_token_id=tokenizer.bos_token_id)
        self._answers = 0

    @property
    def continues(self) -> bool:
        """True for a model without a chat template, which continues the text."""
        return self.template.name == "plain"

    def fit(self, conversation: Conversation, options: ChatOptions) -> TruncatedConversation:
        """The model's input. Raises ConfigError if the chat template rejects the conversation."""
        return truncate(conversation, self._ids, token_limit(self.context, options.max_new_tokens))

    def answer(self, read: TruncatedConversation, options: ChatOptions, show: Show) -> Answer:
        """Samples the answer and passes each piece to `show`; after Ctrl-C returns the part sampled so far."""
        torch.manual_seed(derive_seed(options.seed, "chat", self._answers))
        self._answers += 1
        pieces = AnswerStreamer(self.template.tokenizer, show, strip=not self.continues)
        settings, stopped = self._settings(options, self.context - len(read.ids)), False
        ids = read.ids[None].to(self.model.device)
        try:
            with quiet():
                self.model.generate(
                    ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=pieces
                )
        except KeyboardInterrupt:
            pieces.end()
            stopped = True
        return Answer(pieces.text if self.continues else pieces.text.rstrip(), stopped)

    def _ids(self, messages: Messages) -> Tensor:
        if self.continues:
            return self.template.encode_text(as_plain_text(messages))
        return self.template.encode_prompt(messages)

    def _settings(self, options: ChatOptions, available: int) -> GenerationConfig:
        sampling = (
            {"temperature": options.temperature, "top_p": options.top_p, "top_k": 0} if options.temperature else {}
        )
        return GenerationConfig(
            do_sample=bool(options.temperature),
            max_new_tokens=min(options.max_new_tokens, available),
            eos_token_id=[*self.template.stop_ids],
            pad_token_id=self.template.tokenizer.pad_token_id,
            **sampling,
        )


class AnswerStreamer(TextStreamer):
    """Streams an answer token by token and collects its text."""

    def __init__(self, tokenizer: Any, show: Show, *, strip: bool) -> None:
        """`strip` removes whitespace at the beginning of an answer."""
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        self.show, self.strip, self.text = show, strip, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        piece = CONTROL.sub("", text)
        if self.strip and not self.text:
            piece = piece.lstrip()
        self.text += piece
        if piece:
            self.show(piece)
