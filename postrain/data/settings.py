"""The keys of the `data` config group."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from annotated_types import DocInfo, Interval

from postrain.config.schema import Confirm
from postrain.data.decontaminate import Decontaminate
from postrain.data.encode import LossOn
from postrain.data.kinds.steps import StepLayout
from postrain.data.layouts import COLUMNS
from postrain.data.mix_sources import Mix, Replay
from postrain.data.quality import Quality
from postrain.data.sources import Files, Loaded, Source, read_held_out
from postrain.types import Count, CountOrZero, OpenFraction, Positive, Size
from postrain.world.gold import is_bundled

Length = Annotated[int, Interval(ge=4, le=1_000_000_000)]


@dataclass(kw_only=True, eq=False, repr=False)
class DataSettings:
    """Settings of a run's data."""

    source: Source | None = None
    """Source of the rows; null with `path`."""
    path: str | None = None
    """A file (.jsonl .json .csv .tsv .parquet .arrow .txt, also .gz .bz2 .xz .zst), a folder or a glob of such files
    ('data/*.jsonl'; those with eval, valid or dev in their name or subfolder, else those with test, are held out), or a
    directory written by the save_to_disk of `datasets`. Replaces the source. Cells may contain lists and messages as
    JSON text."""
    eval_path: str | Mapping[str, str] | None = None
    """Path of the held-out rows, as data.path; null uses those of the source, else holds out training prompts. Several
    paths by name, as {easy: a.jsonl, hard: b.jsonl}, are also evaluated one by one (eval/easy/loss)."""
    eval_fraction: OpenFraction = 0.1
    """Fraction of the prompts to hold out if the source has no held-out rows; at most data.eval_rows prompts.
    Conversations that begin with the same system and user message are held out together."""
    eval_rows: Size = 128
    """Maximum number of held-out rows; of each source of a mixture, and of each file of data.eval_path."""
    max_rows: Count | None = None
    """Maximum number of training rows, from the beginning; null uses all. Does not apply to held-out rows."""
    mix: Mix = field(default_factory=dict)
    """Weights of several sources, by file or option of this group, as {a.jsonl: 0.7, world_sums: 0.3}; a list of files
    weights them by size. Replaces the source. Every batch has these shares up to one row; a source whose rows are used
    up repeats. Each source is audited, and evaluated on its own held-out rows (eval/a/loss)."""
    mix_by: Literal["rows", "tokens"] = "rows"
    """Unit of the weights of data.mix: rows, or training tokens, prompts included."""
    mix_temperature: Positive = 1.0
    """Temperature T of the mixture: shares are proportional to weight^(1/T). Above 1, small sources get more."""
    replay: Annotated[Replay | None, DocInfo("a file or data option, or null")] = None
    """Text of the base model's kind to mix into sft or pretrain against forgetting: a file or an option of this group,
    as data.replay=base.txt. It gets a tenth of the tokens in the loss, or data.replay.share with data.replay.path. Its
    held-out loss is eval/replay/loss, which is not part of eval/loss."""
    decontaminate: Annotated[Decontaminate | None, DocInfo("a file or data option, a list of them, or null")] = None
    """Drop training rows that contain prompts of a benchmark: a file or an option of this group, or a list of them. A
    row is dropped if 8-grams in common cover half of the words of a prompt (data.decontaminate.ngram, .overlap)."""
    columns: Mapping[str, str | None] = field(default_factory=lambda: dict.fromkeys(COLUMNS))
    """Column names of the file by part of the record, as in data.columns.prompt=question_text. The names of Alpaca,
    ShareGPT, OpenAI, TRL, LLaMA-Factory and HH-RLHF need no mapping; the audit lists unused columns."""
    prompt_template: str | None = None
    """Text of the prompt with the names of columns in braces, as in "Use {nums} to make {target}."; write {{ and }} for
    braces. The columns stay available to rewards. null reads the prompt from its column."""
    template: str = "auto"
    """Chat template: auto (the one the source requires, else the tokenizer's, else plain), chat (the tokenizer's),
    plain, alpaca, vicuna, qa, dialogue, inst, bot, random (one of alpaca to inst for each row; the model is exported
    with its own, else alpaca), tools (the tokenizer's, else alpaca, with tools as text unless it renders them), or
    the name of another of the tokenizer's templates (tool_use, rag)."""
    loss_on: LossOn = "completion"
    """Tokens in the loss: completion (the last answer), assistant (all answers), all (prompts too)."""
    max_length: Length | None = None
    """Maximum tokens per row; null uses the model's context. Prompts are truncated first, on the left. An answer that
    does not fit alone loses its end, with its end token, and leaves its prompt up to half of the row."""
    max_prompt_length: Count | None = None
    """Maximum tokens per prompt; null sets no limit besides data.max_length."""
    completion_tokens: Size = 256
    """Tokens that a completion of these prompts needs: the default of rollout.max_new_tokens."""
    pack: bool = False
    """Join running text and split it into blocks of max_length; attention crosses document boundaries in a block."""
    steps: StepLayout = field(default_factory=StepLayout)
    """Text between the steps of a reasoning chain."""
    quality: Quality = field(default_factory=Quality)
    """Filters of the training rows."""
    gold: Annotated[str | None, Confirm("runs this Python", harmless=is_bundled)] = None
    """Dotted path of the gold scorer, a function with the true score of a completion; used for evaluation only:
    gold(prompt, completion, columns["gold"])."""
    cache: bool = True
    """Keep the tokens of files of more than 4 MB in $POSTRAIN_CACHE (~/.cache/postrain), so that the next start takes
    seconds; false tokenizes the rows at every start."""
    show_mask: CountOrZero = 0
    """Number of rows to print with the tokens in the loss in green; 0 prints none."""

    def load_rows(self) -> Loaded:
        """The rows of `path`, else of `source`, with the held-out rows of `eval_path` if that is one path."""
        eval_path = self.eval_path if isinstance(self.eval_path, str) else None
        if self.path is not None:
            loaded = Files(path=self.path, eval_path=eval_path).load(eval_rows=self.eval_rows)
        else:
            assert self.source is not None
            loaded = self.source.load(eval_rows=self.eval_rows)
            loaded = replace(loaded, held_out=read_held_out(eval_path)) if eval_path else loaded
        return replace(loaded, train=loaded.train.head(self.max_rows))
