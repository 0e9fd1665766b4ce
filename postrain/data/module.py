"""The `data` config group: rows of a source as batches.

`prepare` reads, splits, filters, encodes and audits all rows once, before weights are loaded (preparation.py). The
loader (schedule.py) returns the same rows after a resume and for any number of ranks. Under a plain Lightning Trainer
`setup` calls `prepare` with the method's DataSpec.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, asdict, dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import Any

from lightning.pytorch import LightningDataModule

from postrain.config.keywords import refuse_unknown_keywords
from postrain.config.schema import load_target
from postrain.config.tree import instantiate
from postrain.data.audit import Audit
from postrain.data.cached_preparation import prepare
from postrain.data.chat import Template
from postrain.data.decontaminate import Benchmark
from postrain.data.encode import Encoder
from postrain.data.item_store import distinct_ids
from postrain.data.kinds.prompt import EncodedPrompt, Prompt, Prompts
from postrain.data.kinds.text import Text
from postrain.data.mix_sources import SHORT_FORMS, expand
from postrain.data.preparation import HeldOutSet, Preparation
from postrain.data.prompt_template import PromptTemplate
from postrain.data.records import convert, encode
from postrain.data.schedule import DataSpec, EvalBatches, TrainBatches
from postrain.data.settings import DataSettings
from postrain.data.sources import Rows
from postrain.data.template_choice import Mode
from postrain.data.token_cache import common_columns
from postrain.errors import ConfigError
from postrain.types import Batch


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Switches the search for reference cycles off, which takes a third of the time with millions of new objects.

    Rows and records hold no cycles.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@refuse_unknown_keywords
@dataclass(kw_only=True, eq=False, repr=False)
class DataModule(DataSettings, LightningDataModule):
    """Data of a run, from the source of its rows to batches.

    In Python, `rows` is a list of mappings in any known layout, a path, or a `datasets.Dataset`. The default
    `tokenizer` is the method's.

        pairs = [{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, ...]
        Trainer(max_steps=50).fit(DPO(model, tokenizer), datamodule=DataModule(pairs, tokenizer))
    """

    rows: InitVar[Any] = field(default=None, kw_only=False)
    tokenizer: InitVar[Any] = field(default=None, kw_only=False)

    def __post_init__(self, rows: Any, tokenizer: Any) -> None:
        LightningDataModule.__init__(self)  # super() would reset the settings
        if isinstance(rows, str | os.PathLike):
            self.path = os.fspath(rows)
        elif rows is not None:
            self.source = Rows(rows=rows)
        self.own_tokenizer = tokenizer
        given = {name: getattr(self, name) for name in SHORT_FORMS}
        for name, value in expand(given).items():
            setattr(self, name, instantiate(value))
        if self.source is None and self.path is None and not self.mix:
            raise ConfigError("data.path: has to be given for this data option, as data.path=FILE")
        if self.prompt_template is not None:
            PromptTemplate(self.prompt_template)  # reports a mistake before rows are read
        self.gold_score: Callable[..., Mapping[str, float]] | None = (
            None if self.gold is None else load_target(self.gold)
        )
        """Gold scorer of completions; None without `gold`."""
        self.start_update = 0
        """First update of the batches; the counters of a resumed method take precedence."""
        self.prepared_for: DataSpec | None = None
        """The DataSpec of the last `setup`; None before it and after a direct call of `prepare`."""

    @classmethod
    def translate_config(cls, node: Mapping[str, Any]) -> dict[str, Any]:
        """The config node without short forms such as data.mix={a.jsonl: 0.7, b.jsonl: 0.3}."""
        return expand(node)

    # Before training ----------------------------------------------------------------------------------------------

    @no_garbage_collection()
    def prepare(
        self,
        *,
        kind: str,
        tokenizer: Any,
        context: int,
        batch_size: int,
        updates: int,
        seed: int,
        completion_tokens: int = 0,
        use_margin: bool = False,
        num_train_epochs: float | None = None,
    ) -> Audit:
        """Reads, filters, splits and encodes all rows. Raises ConfigError for data that cannot be trained on.

        `kind` is a record kind; `completion_tokens` are reserved after prompts for sampling; `use_margin` states that
        the method uses the margins of pairs; with `num_train_epochs`, `spec.updates` follows from the rows.
        """
        spec = DataSpec(kind, context, completion_tokens, batch_size, updates, seed, use_margin, num_train_epochs)
        # Running text uses no template, so an exported base model keeps its tokenizer's.
        running = kind == Text.__name__

        def make_template(required: Mode) -> Template:
            mode = "plain" if running else required if self.template == "auto" else self.template
            return Template(tokenizer, mode=mode, seed=seed, install=not running)

        prepared = prepare(self, spec, make_template, self.benchmarks)
        self.spec = spec.of_items(len(prepared.train))
        self.chat_template, self.audit = prepared.template, prepared.audit
        self.records, self.train, self.eval = prepared.records, prepared.train, prepared.eval
        self.streams, self.held_out = prepared.streams, prepared.held_out
        self.common_columns = prepared.columns
        return self.audit

    def setup(self, stage: str) -> None:
        """Prepares the data for the Trainer's method unless it is prepared. Raises ConfigError."""
        method: Any = self.trainer.lightning_module if self.trainer else None
        if method is None or (hasattr(self, "audit") and self.prepared_for is None):
            return
        spec = method.data_spec()
        if spec != self.prepared_for:
            self.prepare(tokenizer=self.own_tokenizer or method.components.template.tokenizer, **asdict(spec))
            method.updates, method.num_train_epochs = self.spec.updates, None
            self.prepared_for = method.data_spec()

    @cached_property
    def benchmarks(self) -> list[Benchmark]:
        """The benchmarks of `decontaminate`, read once."""
        return self.decontaminate.benchmarks() if self.decontaminate else []

    # While training -----------------------------------------------------------------------------------------------

    def train_dataloader(self) -> TrainBatches:
        """This rank's share of the batches of the remaining updates."""
        trainer = self.trainer
        method = trainer.lightning_module if trainer else None
        ranks = trainer.world_size if trainer else 1
        if ranks > self.spec.batch_size:
            raise ConfigError(f"method.batch_size={self.spec.batch_size}: {ranks} ranks need at least {ranks} rows")
        return TrainBatches(
            items=self.train,
            batch_size=self.spec.batch_size,
            updates=self.spec.updates,
            seed=self.spec.seed,
            start=self.start_update,
            done=lambda: getattr(getattr(method, "counters", None), "updates", 0),
            rank=trainer.global_rank if trainer else 0,
            ranks=ranks,
            streams=self.streams,
        )

    def val_dataloader(self) -> EvalBatches:
        """The held-out batches, the same on every rank."""
        return EvalBatches(self.eval)

    def eval_batches(self) -> Iterator[tuple[HeldOutSet, Batch]]:
        """The held-out batches, part by part."""
        parts = self.held_out or (HeldOutSet("", self.records.held_out, self.eval),)
        return ((part, batch) for part in parts for batch in EvalBatches(part.items))

    def held_out_part(self, row: int) -> str:
        """The name of the part that a held-out row belongs to; empty for a part without metrics of its own."""
        return next((part.name for part in self.held_out if row in part.rows), "")

    def eval_prompts(self, count: int) -> Prompts:
        """The first `count` distinct held-out prompts; for running text, the beginning of each document.

        Of several parts it takes the first prompts of each in turn.
        """
        parts = [part.records for part in self.held_out if part.in_total] or [self.records.held_out]
        held_out = [record for records in zip_longest(*parts) for record in records if record is not None]
        different = list({record.prompt_content(): record for record in held_out}.values())[:count]
        if self.spec.kind == Text.__name__:
            encoder = self._prompt_encoder()
            return EncodedPrompt.collate(
                [record.encode_beginning(encoder) for record in different if isinstance(record, Text)]
            )
        found = convert(different, Prompt.__name__, source="the held-out rows").records
        return self.encode_prompts([record for record in found if isinstance(record, Prompt)])

    def encode_prompts(self, prompts: Sequence[Prompt]) -> Prompts:
        """Prompts as tokens, truncated to leave room for a completion."""
        items = encode(Prompt.with_reward_columns(tuple(prompts)), self._prompt_encoder())
        return EncodedPrompt.collate([item for item in items if isinstance(item, EncodedPrompt)])

    def _prompt_encoder(self) -> Encoder:
        preparation = Preparation(self, self.spec, self.chat_template)
        return preparation.encoder(preparation.prompt_length())

    def row_tokens(self) -> int:
        """Tokens of the longest row, training or held out, with the completion of a prompt."""
        held_out = max((len(ids) for item in self.eval for ids in item.sequences()), default=0)
        longest = max(held_out, self.audit.lengths.get("longest", 0))
        return min(self.spec.context, longest + self.spec.completion_tokens)

    def token_ids(self) -> list[int]:
        """The distinct token ids of the training rows, sorted."""
        return distinct_ids(self.train)

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns that all training records have, for rewards."""
        return common_columns(self.records.train) if self.common_columns is None else self.common_columns
