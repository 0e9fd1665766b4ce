"""The `prompts` group: the model makes prompts itself, by few-shot examples or from the header of its chat template.

Each maker gives the token ids that the model continues, and the texts at which a prompt ends. Sampling and filters are
in synthesize.py.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from postrain.data.chat import Template
from postrain.data.conversation import user
from postrain.errors import ConfigError
from postrain.types import Count, Fraction

MARK = "PROMPT"


@dataclass(frozen=True, kw_only=True)
class PromptMaker(ABC):
    """Makes prompts with the model. Seeds are the prompts of the data; made prompts must differ from them."""

    count: Count = 200
    """Number of prompts to sample, before the filters."""
    max_rouge_l: Fraction = 0.7
    """Drop a prompt whose ROUGE-L with a seed or an earlier prompt is at least this; 1 drops equal prompts only."""
    min_words: Count = 3
    """Minimum words of a prompt. A sentence without spaces (Chinese, Japanese) is one word: set 1 there."""
    max_words: Count = 150
    """Maximum words of a prompt."""

    @abstractmethod
    def contexts(
        self, template: Template, seeds: Sequence[str], made: Sequence[str], numbers: Sequence[int]
    ) -> list[Tensor]:
        """The token ids that the model continues for each of `numbers`, [L]; `made` are earlier prompts that passed the
        filters. Raises ConfigError if the template or the seeds do not suit."""

    @abstractmethod
    def stops(self, template: Template) -> tuple[str, ...]:
        """Texts that end a prompt, besides the end tokens."""


@dataclass(frozen=True, kw_only=True)
class SelfInstruct(PromptMaker):
    """Few-shot: the model continues a numbered list of prompts (Wang et al. 2022, arXiv 2212.10560)."""

    examples: Count = 8
    """Prompts in the list; a quarter of them are earlier ones of the model, once there are some."""
    header: str = "Come up with a series of tasks:"
    """First line of the list."""

    def contexts(
        self, template: Template, seeds: Sequence[str], made: Sequence[str], numbers: Sequence[int]
    ) -> list[Tensor]:
        if len(seeds) < 2:
            raise ConfigError(f"prompts=self_instruct: expected at least 2 seed prompts in data, got {len(seeds)}")
        return [template.encode_text(self._list(seeds, made, random.Random(number))) for number in numbers]

    def _list(self, seeds: Sequence[str], made: Sequence[str], rng: random.Random) -> str:
        own = rng.sample(made, min(self.examples // 4, len(made)))
        shown = [*rng.sample(seeds, min(self.examples - len(own), len(seeds))), *own]
        rng.shuffle(shown)
        lines = [f"Task {place}: {' '.join(text.split())}" for place, text in enumerate(shown, start=1)]
        return "\n".join([self.header, *lines, f"Task {len(shown) + 1}:"])

    def stops(self, template: Template) -> tuple[str, ...]:
        return ("\n",)


@dataclass(frozen=True, kw_only=True)
class Magpie(PromptMaker):
    """Samples the user's turn after the header that the chat template writes before it (Xu et al. 2024, arXiv
    2406.08464)."""

    def contexts(
        self, template: Template, seeds: Sequence[str], made: Sequence[str], numbers: Sequence[int]
    ) -> list[Tensor]:
        header, _ = user_turn(template)
        ids = template.encode_continuation(header)
        return [ids] * len(numbers)

    def stops(self, template: Template) -> tuple[str, ...]:
        _, footer = user_turn(template)
        return tuple(line for line in footer.splitlines() if line.strip())[:1]


def user_turn(template: Template) -> tuple[str, str]:
    """The texts that a chat template writes before and after the user's message. Raises ConfigError if it writes
    nothing before it."""
    header, _, footer = template.decode_all(template.encode_prompt(user(MARK)).tolist()).partition(MARK)
    if not header.strip():
        raise ConfigError(
            f"prompts=magpie: the template {template.name} writes nothing before the user's message, so there is no "
            "turn to sample; use a model with a chat template, data.template=alpaca, or prompts=self_instruct"
        )
    return header, footer
