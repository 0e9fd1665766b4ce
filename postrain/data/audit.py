"""Counts of the data before the first update, and errors for data without tokens in the loss.

Prints a table of counts and, with `data.show_mask`, rows with the tokens in the loss in green. The manifest stores the
counts and a few shortened rows for the report.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from postrain.data.chat import Template
from postrain.data.decontaminate import OVERLAPS
from postrain.data.encode import Encoded, TokenUse
from postrain.data.kinds import KINDS
from postrain.data.layouts import names
from postrain.data.preview import PreviewRow, preview
from postrain.data.source_audit import SourceAudit, source_lines, source_table
from postrain.data.token_counts import TokenCounts, fingerprint
from postrain.errors import ConfigError

COMMON = ("template", "fingerprint")
"""Lines of an audit that the sources of a mixture have in common."""
STYLES: Mapping[TokenUse, str] = {
    "loss": "green",
    "context": "dim",
    "positive_step": "bold green",
    "negative_step": "bold red",
}
MANY_PASSES = 20
"""Passes over the rows above which the audit advises fewer; prompts, whose completions differ each time, may have
more."""
PREVIEW_ITEMS = 3
"""Items whose rows are stored in the manifest for the report."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Counts of the training and held-out data."""

    source: str
    kind: str
    """Kind of record the method trains on."""
    template: str
    rows_read: int
    """Training rows in the source, and held-out rows if it has them."""
    rows_train: int
    rows_eval: int
    dropped: Mapping[str, int]
    """Number of dropped rows by reason."""
    repaired: Mapping[str, int]
    """Number of changed rows by the change."""
    warned: Mapping[str, int]
    """Number of rows by what they should not have, such as calls of undeclared functions."""
    unused: Mapping[str, int]
    """Rows with an unused column or message field, by its name."""
    offered: tuple[str, ...]
    """Prompt columns that rewards can read; empty for other kinds."""
    contaminated: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """For each benchmark of data.decontaminate: the number of prompts found in training rows, and of all prompts."""
    cut: Mapping[str, int]
    """Number of truncated training and held-out rows by the truncated part."""
    packed: bool
    """True if an item is a block of concatenated documents."""
    items: int
    """Training items: rows, or blocks of packed text."""
    updates: int
    """Updates of the run; 0 without training."""
    batch_size: int
    """Training items per update."""
    tokens: int
    """Training tokens, prompts included."""
    supervised: int
    """Training tokens in the loss; for reasoning chains, labelled steps."""
    supervised_min: int
    supervised_mean: float
    """Mean over training token rows; a pair has two."""
    unsupervised_rows: int
    """Token rows without a token in the loss."""
    ended: float
    """Share of token rows whose last token is in the loss and is an end token."""
    bos: int
    """Most beginning-of-sequence tokens at the start of a row."""
    lengths: Mapping[str, int]
    """Percentiles of the tokens of a row."""
    labels: Mapping[str, int]
    """Training records or steps by label; empty without labels."""
    fingerprint: str
    """sha256 of all ids, masks and labels, training and held out, and of the columns that rewards may read."""
    samples: str
    """Rendered rows with their loss mask; empty unless data.show_mask is set."""
    shown: tuple[PreviewRow, ...]
    """The first training rows with their loss mask, shortened."""
    sources: Mapping[str, SourceAudit] = field(default_factory=dict)
    """The sources of a mixture by name; empty for a single source."""
    held_out: Mapping[str, int] = field(default_factory=dict)
    """Number of held-out rows of each part with metrics of its own."""

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        omitted = ("samples", "updates", "batch_size", "sources")
        counts = {name: value for name, value in asdict(replace(self, sources={})).items() if name not in omitted}
        if self.sources:
            return {**counts, "sources": {name: one.to_dict() for name, one in self.sources.items()}}
        return {**counts, "passes": self.passes} if self.updates else counts

    @property
    def passes(self) -> float:
        """Passes over the training items (epochs) in all updates of the run."""
        return self.updates * self.batch_size / max(1, self.items)

    @property
    def name(self) -> str:
        """The source's name in messages."""
        return self.source

    def render(self, source: str = "") -> str:
        """For the console; as the `source` of a mixture, without what all sources have in common."""
        # Text, because names of files and columns may hold the brackets of rich's markup.
        table = Table(show_header=False, box=None)
        for name, value in self._lines():
            if not source or name not in COMMON:
                table.add_row(name, Text(value))
        title = Text(f"{source or 'data'}: {self.source}", style="italic")
        parts = [_printed(Group(title, table)), *([_printed(source_table(self.sources))] if self.sources else [])]
        parts += [one.audit.render(source=name) for name, one in self.sources.items()]
        return "\n".join([*parts, *([self.samples] if self.samples else [])])

    def _lines(self) -> list[tuple[str, str]]:
        record = KINDS[self.kind]
        lines = [
            ("rows", f"{self.rows_read} read, {self.rows_train} training, {self.rows_eval} held out{self._parts()}"),
            *([("passes", self._passes())] if self.updates and not self.sources else []),
            *(source_lines(self.sources) if self.updates else []),
            ("dropped", _counts(self.dropped)),
            *([("decontaminated", self._decontaminated())] if self.contaminated else []),
            *([("repaired", _counts(self.repaired))] if self.repaired else []),
            *([("warnings", _counts(self.warned))] if self.warned else []),
            *([("unused columns", self._unused())] if self.unused else []),
            *([("reward columns", names(self.offered))] if self.offered else []),
            ("cut", _counts(self.cut)),
            ("tokens per row", ", ".join(f"{name} {value}" for name, value in self.lengths.items())),
        ]
        if record.supervises != "nothing":
            share = 100 * self.supervised / max(1, self.tokens)
            learned = f"{self.supervised} of {self.tokens} ({share:.0f} %)"
            steps = record.supervises == "steps"
            name, learned = ("steps", str(self.supervised)) if steps else ("tokens in the loss", learned)
            lines.append(
                (name, f"{learned}; per row {self.supervised_mean:.1f} on average, at least {self.supervised_min}")
            )
        if self.labels:
            lines.append(("labels", f"{_counts(self.labels)}{record.label_advice(self.labels)}"))
        if record.supervises == "tokens" and not self.packed:
            lines.append(("rows with end token", f"{100 * self.ended:.0f} %"))
        template = self.template if self.packed else f"{self.template}, {self.bos} BOS"
        return [*lines, ("template", template), ("fingerprint", self.fingerprint[:16])]

    def _parts(self) -> str:
        """The number of held-out rows of each part."""
        return f" ({', '.join(f'{rows} {name}' for name, rows in self.held_out.items())})" if self.held_out else ""

    def _passes(self) -> str:
        unit = "blocks" if self.packed else "rows"
        many = self.passes > MANY_PASSES and KINDS[self.kind].supervises != "nothing"
        advice = "; so many memorize the rows: add rows, or set method.num_train_epochs=3" if many else ""
        return f"{self.passes:.2f} ({self.updates:,} updates × {self.batch_size:,} {unit} of {self.items:,}){advice}"

    def _decontaminated(self) -> str:
        """The benchmarks with the number of their prompts that occurred in the dropped rows."""
        return ", ".join(
            f"{found:,} of {total:,} prompts of {name} in {self.dropped.get(OVERLAPS + name, 0):,} rows"
            for name, (found, total) in self.contaminated.items()
        )

    def _unused(self) -> str:
        """The unused columns, with their number of rows unless all rows have them."""
        partly = {column: rows for column, rows in self.unused.items() if rows != self.rows_read}
        found = [f"{column} ({partly[column]} rows)" if column in partly else column for column in self.unused]
        hints = KINDS[self.kind].unused_hints
        return names(found) + "".join(f"; {hints[column]}" for column in self.unused if column in hints)

    def check(self) -> None:
        """Raises ConfigError for rows without tokens in the loss and for repeated BOS tokens."""
        if self.unsupervised_rows:
            raise ConfigError(
                f"{self.source}: {self.unsupervised_rows} rows have no token in the loss; show them with "
                "data.show_mask=3, and try data.loss_on=completion or another data.template"
            )
        if self.bos > 1 and not self.packed:
            raise ConfigError(
                f"{self.source}: rows start with {self.bos} beginning-of-sequence tokens; the template writes one and "
                "the text another: remove it from the data"
            )


def count(
    train: Sequence[Encoded],
    held_out: Sequence[Encoded],
    template: Template,
    counts: TokenCounts,
    *,
    gold: Sequence[Any] = (),
    offset: int = 0,
) -> dict[str, Any]:
    """The fields of an audit that are computed from tokens; `counts` are those of `train`.

    `gold` are the gold columns of the held-out rows, which the evaluation of completions uses. `offset` is subtracted
    from the numbers of the previewed rows.
    """
    return {
        **counts.fields(),
        "fingerprint": fingerprint(held_out, gold, after=counts.digest),
        "shown": tuple(row.shortened() for row in preview(train[:PREVIEW_ITEMS], template, offset)),
    }


def show(items: Sequence[Encoded], template: Template, rows: int, offset: int = 0) -> str:
    """Renders the first items: tokens in the loss green, all others dim, special tokens as text.

    For a reasoning chain, the last token of each step is green for a right step and red for a wrong one.
    """
    shown = Text()
    for row in preview(items[:rows], template, offset):
        shown.append(f"row {row.row}\n", style="bold")
        for stretch in row.stretches:
            shown.append(stretch.text, style=STYLES[stretch.use])
        shown.append("\n")
    return _printed(shown)


def _printed(renderable: Any) -> str:
    """Renders for the console, in colour if it supports colour."""
    console = Console(file=io.StringIO(), width=Console().width, color_system=Console().color_system)  # type: ignore[arg-type]
    with console.capture() as capture:
        console.print(renderable)
    return capture.get().rstrip("\n")


def _counts(found: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in found.items()) or "none"
