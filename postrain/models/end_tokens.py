"""The tokens that end an answer besides the EOS token of the tokenizer: those of the model's generation config.

Some models end their turns with several tokens: Llama 3.1 with <|eot_id|>, and with <|eom_id|> after a call. The
tokenizer object keeps them, because data, rollouts and judges have the tokenizer and not the directory of the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from postrain.models.directory import listed_ids, saved_end_ids

ATTRIBUTE = "generation_end_ids"


def set_end_ids(tokenizer: Any, ids: list[int]) -> None:
    """Keeps end tokens with a tokenizer. Saved tokenizers do not hold them."""
    setattr(tokenizer, ATTRIBUTE, tuple(ids))


def record_end_ids(tokenizer: Any, model: Any) -> None:
    """Keeps the end tokens of a model in memory with its tokenizer, unless that has its own."""
    if not end_ids(tokenizer):
        set_end_ids(tokenizer, listed_ids(getattr(getattr(model, "generation_config", None), "eos_token_id", None)))


def end_ids(tokenizer: Any) -> tuple[int, ...]:
    """The end tokens kept with a tokenizer, else those in the directory that it was read from."""
    kept, directory = getattr(tokenizer, ATTRIBUTE, None), getattr(tokenizer, "name_or_path", "")
    return tuple(saved_end_ids(Path(directory))) if kept is None and directory else kept or ()
