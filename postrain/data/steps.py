"""How a chain of reasoning is written as tokens, and where each of its steps ends.

Every step is tokenised by itself, so that its last token is its own whatever the tokenizer would merge across the
border. Leaves out what is cut when a row is too long: that is encode.py's, or whoever reads a chain.

L tokens of a row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from postrain.data.chat import Template
from postrain.data.records import Messages
from postrain.types import ConfigError

LAYOUT_FILE = "steps.json"
"""Lies in the directory of a process reward model, and of no other model: how it has learned to read chains."""


@dataclass(frozen=True)
class Chain:
    """The parts of a row, each a piece of token ids, int64."""

    prompt: Tensor
    steps: tuple[Tensor, ...]
    """Each with what stands before and behind it."""
    end: Tensor
    """What the template ends an answer with, at least one token."""

    def row(self) -> tuple[Tensor, Tensor]:
        """All ids, [L], and True at the token right after each step, bool [L].

        A model's state just before such a token is its state at the step's end, all it knows of the step and no more.
        """
        ids = torch.cat([self.prompt, *self.steps, self.end])
        after = torch.tensor([len(self.prompt), *map(len, self.steps)]).cumsum(0)[1:]
        return ids, torch.zeros(len(ids), dtype=torch.bool).index_fill(0, after, True)

    def steps_within(self, length: int) -> int:
        """How many steps fit into a row of so many tokens, from the first on."""
        fixed = len(self.prompt) + len(self.end)
        ends = torch.tensor([len(step) for step in self.steps]).cumsum(0)
        return int((ends + fixed <= length).sum())


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """How the steps of a chain follow each other; a process reward model reads chains as it has learned them."""

    joiner: str
    """Stands before each step; not before the first where the template sets answers off by itself."""
    separator: str
    """Stands behind each step, the last one too, and has the step's score at its last token; where it is empty, that
    is the last token of the step."""

    def chain(self, template: Template, prompt: Messages, steps: Sequence[str], *, row: int = 0) -> Chain:
        """A chain as tokens; `row` names it in an error."""
        texts = [self.joiner + step for step in steps]
        if texts and template.name != "plain":
            texts[0] = texts[0].lstrip()
        pieces = [piece for text in texts for piece in (text, self.separator)]
        before, after, end = template.encode_pieces(prompt, pieces, row=row)
        joined = zip(after[::2], after[1::2], strict=True)
        return Chain(before, tuple(torch.cat(pair) for pair in joined), end)

    def to_json(self) -> str:
        """What LAYOUT_FILE holds."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def of_model(cls, directory: Path) -> StepLayout | None:
        """What the process reward model in a directory reads; None where there is no such model."""
        path = directory / LAYOUT_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path} does not hold a joiner and a separator ({error}); copy it again") from None
