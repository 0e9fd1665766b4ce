"""Trains the tokenizer of the bundled model on the world and writes it: python -m postrain.world.tokenizer DIR.

Byte-level BPE: it encodes any text, and numbers digit by digit. The chat template marks the assistant's tokens for the
loss mask. Leaves out the weights: experiment=nano trains them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from postrain.world.rows import END_OF_TEXT, Kind, Task, rows

SIZE = 1024
PAD = "<|pad|>"
CHAT = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|end|>\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
SAMPLE: tuple[tuple[Kind, Task, int], ...] = (
    ("text", "mixed", 9000),
    ("text", "facts", 6000),
    ("demonstrations", "instructions", 4000),
    ("preferences", "instructions", 2000),
)
"""The rows on which the merges are trained; instructions are included so that their words become tokens."""


def train() -> PreTrainedTokenizerFast:
    """The trained tokenizer. Deterministic."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE,
        special_tokens=[END_OF_TEXT, PAD, *CHAT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=list(CHAT),
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _texts() -> Iterator[str]:
    for kind, task, count in SAMPLE:
        for row in rows(kind, task=task, count=count, seed=0, split="train"):
            yield from (value for value in row.values() if isinstance(value, str))


if __name__ == "__main__":
    train().save_pretrained(Path(sys.argv[1]))
