"""Small tokenizers, built in milliseconds, and builders of conversations and tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from postrain.data.chat import Template
from postrain.data.conversation import Message, Messages
from postrain.data.quality import Quality
from postrain.data.readers import Row, Table

SPECIAL = ["<|end|>", "<|bos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|stop|>"]
CORPUS = ["What is 2 + 2? The answer is 4. The answer is", "Once upon a time the answer was the question."] * 3
MARKED = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|stop|>' }}{% endgeneration %}{% else %}{{ m.content + '<|stop|>' }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A chat template with a generation mark around each answer."""
UNMARKED = MARKED.replace("{% generation %}", "").replace("{% endgeneration %}", "")
"""The same template without generation marks."""
STRIPPING = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content.split('</think>')[-1] + '<|stop|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""A chat template that removes the reasoning of answers, as those of reasoning models do."""
NO_FILTERS = Quality(
    empty="drop",
    min_characters=0,
    max_characters=None,
    max_repetition=1.0,
    dedupe=False,
    near_dedupe=None,
    balance=None,
)


def byte_tokenizer(
    *, template: str | None = None, pad: str = "<|pad|>", adds_bos: bool = False
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, some of them across spaces and words, as in real tokenizers."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", inner.token_to_id("<|bos|>"))]
        )
    return _wrap(inner, template, pad)


def metaspace_tokenizer(*, template: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer that prepends a space to every text, as that of Llama 2 does."""
    letters = sorted({letter for text in CORPUS for letter in text} | set("abcdefghijklmnopqrstuvwxyz:#-\n▁"))
    tokens = {token: index for index, token in enumerate([*SPECIAL, "<unk>", *letters])}
    inner = Tokenizer(models.BPE(vocab=tokens, merges=[], unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Metaspace(prepend_scheme="first")
    inner.add_special_tokens(SPECIAL)
    return _wrap(inner, template, "<|pad|>")


def _wrap(inner: Tokenizer, template: str | None, pad: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        bos_token="<|bos|>",
        pad_token=pad,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = template
    return tokenizer


def decoded(template: Template, ids: Tensor) -> str:
    """The text of token ids, with special tokens."""
    return template.tokenizer.decode(ids.tolist())


def chat(*turns: str) -> Messages:
    """A conversation of alternating user and assistant messages."""
    return tuple(Message(("user", "assistant")[index % 2], text) for index, text in enumerate(turns))


def table(rows: Iterable[Mapping[str, Any]], name: str = "rows.jsonl") -> Table:
    """A table of the rows, numbered from 1 as in rows.jsonl."""
    return Table(name, "line", tuple(Row(number, values) for number, values in enumerate(rows, start=1)))


def load_rows(source: Any, eval_rows: int = 6) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The columns of the training rows and of the held-out rows of a source."""
    loaded = source.load(eval_rows=eval_rows)
    assert loaded.held_out is not None
    train, held_out = ([dict(row.values) for row in table.rows] for table in (loaded.train, loaded.held_out))
    return train, held_out


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write the rows as a JSON-lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
