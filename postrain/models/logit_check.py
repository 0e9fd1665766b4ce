"""Compares the logits of two forms of a model on real rows: an adapter and its merge, weights and their GGUF file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from postrain.jsonl import JsonLines
from postrain.models.parts import model_width, unwrapped

ROWS, TOKENS = 16, 128
LOGITS = 2**26
"""The maximum number of logits that are kept, 256 MB."""
TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "Question: what is 17 + 25? Answer: 42.",
    "Dear Sir or Madam, thank you for your letter of 3 March.",
    "def add(a, b):\n    return a + b\n",
)
"""The rows of a model without samples."""


@dataclass(frozen=True, kw_only=True)
class LogitCheck:
    """The difference of two models' logits on the same rows."""

    max_difference: float
    """The largest difference of a logit."""
    largest: float
    """The largest absolute logit of the first model."""
    same_token: float | None
    """The share of positions at which both models have the same most likely token; None for scores."""
    rows: int
    tokens: int
    source: str
    """The rows' source: samples.jsonl, or built-in texts."""

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit, at least of 1."""
        return self.max_difference / max(1.0, self.largest)

    def describe(self) -> str:
        """One line for the console and the model card."""
        if self.same_token is None:
            return (
                f"max |Δscore| {self.max_difference:.2g} (largest score {self.largest:.3g}), {self.rows} rows of "
                f"{self.source}"
            )
        return (
            f"max |Δlogit| {self.max_difference:.2g} (largest logit {self.largest:.3g}), same most likely token at "
            f"{self.same_token:.1%} of {self.tokens} positions, {self.rows} rows of {self.source}"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True)
class CheckRows:
    """Token ids of rows, and where they come from."""

    ids: tuple[Tensor, ...]
    source: str


def check_rows(tokenizer: Any, run: Path | None, vocabulary: int) -> CheckRows:
    """The newest completions in samples.jsonl of a run with their prompts, else built-in texts.

    `vocabulary` is the number of logits of a position, which limits the number of tokens.
    """
    samples = list(JsonLines(run / "samples.jsonl").read()) if run is not None else []
    pairs = [(str(one.get("prompt", "")), str(one.get("completion", ""))) for one in samples[::-1][:ROWS]]
    texts = [_as_text(tokenizer, *pair) for pair in pairs] or list(TEXTS)
    found, left = [], max(16, LOGITS // vocabulary)
    for text in texts:
        ids = tokenizer(text, add_special_tokens=not pairs).input_ids[: min(TOKENS, left)]
        if ids:
            found.append(torch.tensor(ids))
            left -= len(ids)
    return CheckRows(tuple(found), "samples.jsonl" if pairs else "built-in texts")


def _as_text(tokenizer: Any, prompt: str, completion: str) -> str:
    if not tokenizer.chat_template:
        return prompt + completion
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}]
    return tokenizer.apply_chat_template(messages, tokenize=False)


@torch.no_grad()
def logits_on(model: nn.Module, rows: CheckRows) -> list[Tensor]:
    """The logits of each row, float32 [L, V] on the CPU; the score of a reward model, [1, 1]."""
    device, width = unwrapped(model).device, model_width(model)
    return [
        model(input_ids=ids[None].to(device), use_cache=False).logits[0].float().cpu().reshape(-1, width)
        for ids in rows.ids
    ]


def compare_logits(first: Sequence[Tensor], second: Sequence[Tensor], rows: CheckRows) -> LogitCheck:
    """The differences of two models' logits on `rows`."""
    pairs = list(zip(first, second, strict=True))
    agree = torch.cat([one.argmax(-1) == other.argmax(-1) for one, other in pairs])
    scores = pairs[0][0].shape[-1] == 1
    return LogitCheck(
        # NaN, which `max` of Python would lose, stays NaN.
        max_difference=float(torch.stack([(one - other).abs().max() for one, other in pairs]).max()),
        largest=float(torch.stack([one.abs().max() for one in first]).max()),
        same_token=None if scores else float(agree.float().mean()),
        rows=len(pairs),
        tokens=len(agree),
        source=rows.source,
    )
