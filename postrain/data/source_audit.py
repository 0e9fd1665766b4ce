"""The sources of a mixture in the audit: share, drawn rows and passes of each, beside its own counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # audit.py imports this file
    from postrain.data.audit import Audit

COLUMNS = ("source", "rows", "held out", "drawn", "passes", "of rows", "of tokens", "of loss")


@dataclass(frozen=True, kw_only=True)
class SourceAudit:
    """One source of a mixture."""

    audit: Audit
    """The counts of its rows."""
    share: float
    """Its share of the rows of a batch."""
    drawn: int
    """Training items of all updates that come from it."""
    tokens: float
    """Its share of the tokens of all updates."""
    supervised: float
    """Its share of the tokens in the loss of all updates."""

    @property
    def passes(self) -> float:
        """Passes over its items in all updates; above 1 they repeat."""
        return self.drawn / max(1, self.audit.items)

    def to_dict(self) -> dict[str, Any]:
        """For the manifest."""
        counts = {name: value for name, value in self.audit.to_dict().items() if name not in ("shown", "sources")}
        numbers = {name: getattr(self, name) for name in ("share", "drawn", "passes", "tokens", "supervised")}
        return {**numbers, "audit": counts}

    def cells(self, name: str) -> tuple[str, ...]:
        """The row of COLUMNS."""
        return (
            name,
            f"{self.audit.items:,}",
            f"{self.audit.rows_eval:,}",
            f"{self.drawn:,}",
            f"{self.passes:.2f}",
            f"{self.share:.1%}",
            f"{self.tokens:.1%}",
            f"{self.supervised:.1%}",
        )


def source_table(sources: Mapping[str, SourceAudit]) -> Table:
    """A row for each source, for the console: rows of the run, and shares of all drawn rows and tokens."""
    table = Table(box=None, header_style="italic")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for name, one in sources.items():
        table.add_row(*map(Text, one.cells(name)))
    return table


def source_lines(sources: Mapping[str, SourceAudit]) -> list[tuple[str, str]]:
    """What to know about the drawn rows: sources that repeat, with their passes, and sources that are not drawn."""
    repeated = ", ".join(f"{name} ({one.passes:.2f} passes)" for name, one in sources.items() if one.passes > 1)
    missing = ", ".join(name for name, one in sources.items() if one.share and not one.drawn)
    return [
        *([("repeated", repeated)] if repeated else []),
        *([("not drawn", f"{missing}: too few updates for a row of it; raise its share")] if missing else []),
    ]
