"""The `data` config group: reads, splits, filters and encodes the rows of a source, audits them and returns batches.

`prepare` does all of this once, before weights are loaded. The loader (schedule.py) returns the same rows after a
resume and for any number of ranks. Under a plain Lightning Trainer `setup` calls `prepare` with the method's DataSpec.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import InitVar, asdict, dataclass, field, replace
from typing import Annotated, Any

import torch
from annotated_types import Interval
from lightning.pytorch import LightningDataModule

from postrain.config.schema import Confirm, load_target
from postrain.data import audit as audits
from postrain.data.audit import Audit
from postrain.data.chat import Template
from postrain.data.encode import Encoded, Encoder, LossOn
from postrain.data.kinds import KINDS
from postrain.data.kinds.prompt import EncodedPrompt, Prompt, Prompts
from postrain.data.kinds.steps import StepLayout
from postrain.data.kinds.text import Text
from postrain.data.layouts import COLUMNS
from postrain.data.quality import Quality, apply_filters
from postrain.data.record_reader import RecordReader, RowCounts, Split, drop_empty, drop_overlap, reasons, split
from postrain.data.records import Record, convert, encode
from postrain.data.schedule import DataSpec, EvalBatches, TrainBatches
from postrain.data.sources import Files, Loaded, Rows, Source, read_held_out
from postrain.errors import ConfigError
from postrain.types import Count, CountOrZero, Size
from postrain.world.gold import is_bundled

Length = Annotated[int, Interval(ge=4, le=1_000_000_000)]
Share = Annotated[float, Interval(gt=0, lt=1)]


@dataclass(kw_only=True, eq=False, repr=False)
class DataModule(LightningDataModule):
    """Data of a run, from the source of its rows to batches.

    In Python, `rows` is a list of mappings in any known layout, a path, or a `datasets.Dataset`. The default
    `tokenizer` is the method's.

        pairs = [{"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}, ...]
        Trainer(max_steps=50).fit(DPO(model, tokenizer), datamodule=DataModule(pairs, tokenizer))
    """

    rows: InitVar[Any] = field(default=None, kw_only=False)
    tokenizer: InitVar[Any] = field(default=None, kw_only=False)

    source: Source | None = None
    """Source of the rows; null with `path`."""
    path: str | None = None
    """A file (.jsonl .json .csv .tsv .parquet .arrow .txt, also .gz .bz2 .xz .zst), a folder or a glob of such files
    ('data/*.jsonl'; those with test, eval, valid or dev in their name are held out), or a directory written by the
    save_to_disk of `datasets`. Replaces the source. Cells may contain lists and messages as JSON text."""
    eval_path: str | None = None
    """Path of the held-out rows, as data.path; null uses those of the source, else holds out training prompts."""
    eval_fraction: Share = 0.1
    """Fraction of the prompts to hold out if the source has no held-out rows; at most data.eval_rows prompts."""
    eval_rows: Size = 128
    """Maximum number of held-out rows."""
    max_rows: Count | None = None
    """Maximum number of training rows, from the beginning; null uses all. Does not apply to held-out rows."""
    columns: Mapping[str, str | None] = field(default_factory=lambda: dict.fromkeys(COLUMNS))
    """Column names of the file by part of the record, as in data.columns.prompt=question_text. The names of Alpaca,
    ShareGPT, OpenAI, TRL, LLaMA-Factory and HH-RLHF need no mapping; the audit lists unused columns."""
    template: str = "auto"
    """Chat template: auto (the one the source requires, else the tokenizer's, else plain), chat (the tokenizer's),
    plain, alpaca, vicuna, qa, dialogue, inst, bot, random (one of alpaca to inst for each row; the exported model has
    its own template, else alpaca), or the name of another of its templates (tool_use, rag)."""
    loss_on: LossOn = "completion"
    """Tokens in the loss: completion (the last answer), assistant (all answers), all (prompts too)."""
    max_length: Length | None = None
    """Maximum tokens per row; null uses the model's context. Prompts are truncated first, on the left."""
    max_prompt_length: Count | None = None
    """Maximum tokens per prompt; null sets no limit besides data.max_length."""
    completion_tokens: Size = 256
    """Tokens that a completion of these prompts needs: the default of rollout.max_new_tokens."""
    pack: bool = False
    """Join running text and split it into blocks of max_length; attention crosses document boundaries in a block."""
    steps: StepLayout = field(default_factory=StepLayout)
    """Separators between the steps of a reasoning chain, for step labels (method=prm)."""
    quality: Quality = field(default_factory=Quality)
    """Filters of the training rows."""
    gold: Annotated[str | None, Confirm("runs this Python", harmless=is_bundled)] = None
    """Dotted path of the gold scorer, a function with the true score of a completion; used for evaluation only:
    gold(prompt, completion, columns["gold"])."""
    show_mask: CountOrZero = 0
    """Number of rows to print with the tokens in the loss in green; 0 prints none."""

    def __post_init__(self, rows: Any, tokenizer: Any) -> None:
        super().__init__()
        if isinstance(rows, str | os.PathLike):
            self.path = os.fspath(rows)
        elif rows is not None:
            self.source = Rows(rows=rows)
        self.own_tokenizer = tokenizer
        if self.source is None and self.path is None:
            raise ConfigError("data.path: has to be given for this data option, as data.path=FILE")
        self.gold_score: Callable[..., Mapping[str, float]] | None = (
            None if self.gold is None else load_target(self.gold)
        )
        """Gold scorer of completions; None without `gold`."""
        self.start_update = 0
        """First update of the batches; the counters of a resumed method take precedence."""
        self.prepared_for: DataSpec | None = None
        """The DataSpec of the last `setup`; None before it and after a direct call of `prepare`."""

    # Before training ----------------------------------------------------------------------------------------------

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
    ) -> Audit:
        """Reads, filters, splits and encodes all rows. Raises ConfigError for data that cannot be trained on.

        `kind` is a record kind; `completion_tokens` are reserved after prompts for sampling; `use_margin` states that
        the method uses the margins of pairs.
        """
        self.spec = DataSpec(kind, context, completion_tokens, batch_size, updates, seed, use_margin)
        loaded = self._load()
        # Running text uses no template, so an exported base model keeps its tokenizer's.
        running = kind == Text.__name__
        mode = "plain" if running else loaded.template if self.template == "auto" else self.template
        self.chat_template = Template(tokenizer, mode=mode, seed=seed, install=not running)
        counts = RowCounts()
        parts = self._split(loaded, counts, used={"margin"} if use_margin else set())
        dropped = counts.dropped
        self.records = parts
        encoder = self._encoder(self._row_length())
        self.train = drop_empty(encode(self._with_reward_columns(parts.train), encoder), dropped, loaded.train.name)
        self.eval = drop_empty(self._held_out(encoder, parts), dropped, loaded.train.name)
        self.audit = self._audit(loaded, parts, counts, encoder)
        self.audit.check()
        return self.audit

    def setup(self, stage: str) -> None:
        """Prepares the data for the Trainer's method unless it is prepared. Raises ConfigError."""
        method: Any = self.trainer.lightning_module if self.trainer else None
        if method is None or (hasattr(self, "audit") and self.prepared_for is None):
            return
        spec = method.data_spec()
        if spec != self.prepared_for:
            self.prepare(tokenizer=self.own_tokenizer or method.components.template.tokenizer, **asdict(spec))
            self.prepared_for = spec

    def _load(self) -> Loaded:
        if self.path is not None:
            loaded = Files(path=self.path, eval_path=self.eval_path).load(eval_rows=self.eval_rows)
        else:
            assert self.source is not None
            loaded = self.source.load(eval_rows=self.eval_rows)
            loaded = replace(loaded, held_out=read_held_out(self.eval_path)) if self.eval_path else loaded
        return replace(loaded, train=loaded.train.head(self.max_rows))

    def _split(self, loaded: Loaded, counts: RowCounts, used: set[str]) -> Split:
        """The records of both parts. `counts` gets the dropped rows and the unused columns, except `used`."""
        if self.gold is not None:
            used = {*used, "gold"}
        reading = RecordReader(
            kind=self.spec.kind,
            columns=self.columns,
            quality=self.quality,
            loss_on=self.loss_on,
            known=frozenset(used if self.quality.balance is None else {*used, self.quality.balance}),
        )
        dropped, name, seed = counts.dropped, loaded.train.name, self.spec.seed
        train = reading.records(loaded.train, counts)
        if loaded.held_out is None:
            parts = split(train, fraction=self.eval_fraction, eval_rows=self.eval_rows, seed=seed, source=name)
        else:
            held_out = reading.records(loaded.held_out, counts)
            parts = drop_overlap(train, held_out, eval_rows=self.eval_rows, source=loaded.held_out.name)
        dropped.update(parts.dropped)
        filtered = apply_filters(parts.train, self.quality, seed=seed)
        dropped.update(filtered.dropped)
        if not filtered.records:
            raise ConfigError(f"{name}: no training row is left: {reasons(dropped)}; loosen data.quality")
        return replace(parts, train=filtered.records)

    def _held_out(self, encoder: Encoder, parts: Split) -> tuple[Encoded, ...]:
        """Encodes the held-out rows, together with the training rows that they need, which are then dropped."""
        borrowed = KINDS[self.spec.kind].borrowed(parts.held_out, parts.train)
        return encode(self._with_reward_columns((*parts.held_out, *borrowed)), encoder)[: len(parts.held_out)]

    def _with_reward_columns(self, records: tuple[Record, ...]) -> tuple[Record, ...]:
        return KINDS[self.spec.kind].with_reward_columns(records)

    def _row_length(self) -> int:
        """Maximum tokens per training row; for prompts, minus the tokens to sample."""
        context = self.spec.context
        if self.max_length is not None and self.max_length > context:
            raise ConfigError(
                f"data.max_length={self.max_length}: the model has a context of {context}; give at most that"
            )
        longest = self._prompt_length() if self.spec.kind == Prompt.__name__ else context
        return min(longest, self.max_length or longest)

    def _prompt_length(self) -> int:
        """Maximum tokens of a prompt for sampling."""
        room = self.spec.context - self.spec.completion_tokens
        if room < 1:
            raise ConfigError(
                f"rollout.max_new_tokens={self.spec.completion_tokens} fills the model's context of "
                f"{self.spec.context} tokens (with environment.max_observation_tokens) and leaves none for a prompt; "
                "give fewer"
            )
        return room

    def _encoder(self, max_length: int) -> Encoder:
        return Encoder(
            template=self.chat_template,
            loss_on=self.loss_on,
            max_length=max_length,
            max_prompt_length=self.max_prompt_length or max_length,
            pack=self.pack,
            layout=self.steps,
        )

    def _audit(self, loaded: Loaded, parts: Split, counts: RowCounts, encoder: Encoder) -> Audit:
        return Audit(
            source=loaded.train.name,
            kind=self.spec.kind,
            template=self.chat_template.name,
            rows_read=len(loaded.train.rows) + (len(loaded.held_out.rows) if loaded.held_out else 0),
            rows_train=len(parts.train),
            rows_eval=len(parts.held_out),
            dropped=dict(+counts.dropped),
            repaired=dict(+counts.repaired),
            unused=dict(+counts.unused),
            offered=tuple(counts.offered),
            cut=dict(encoder.cuts),
            samples=audits.show(self.train, self.chat_template, self.show_mask),
            packed=self.pack,
            updates=self.spec.updates,
            batch_size=self.spec.batch_size,
            **audits.count(
                self.train,
                self.eval,
                self.chat_template,
                gold=[one.columns.get("gold") for one in parts.held_out] if self.gold else [],
            ),
        )

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
        )

    def val_dataloader(self) -> EvalBatches:
        """The held-out batches, the same on every rank."""
        return EvalBatches(self.eval)

    def eval_prompts(self, count: int) -> Prompts:
        """The first `count` distinct held-out prompts; for running text, the beginning of each document."""
        different = list({record.prompt_content(): record for record in self.records.held_out}.values())[:count]
        encoder = self._encoder(self._prompt_length())
        if self.spec.kind == Text.__name__:
            return EncodedPrompt.collate(
                [record.encode_beginning(encoder) for record in different if isinstance(record, Text)]
            )
        found = convert(different, Prompt.__name__, source="the held-out rows").records
        prompts = Prompt.with_reward_columns(tuple(record for record in found if isinstance(record, Prompt)))
        return EncodedPrompt.collate([record.encode(encoder) for record in prompts])

    def token_ids(self) -> list[int]:
        """The distinct token ids of the training rows, sorted."""
        return torch.cat([ids for item in self.train for ids in item.sequences()]).unique().tolist()

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns that all training records have, for rewards."""
        common = set.intersection(*(set(record.columns) for record in self.records.train))
        return tuple(name for name in self.records.train[0].columns if name in common)
