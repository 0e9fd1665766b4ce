"""Rows that the chat template refuses, and errors of rows with their file and line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from postrain.data.chat import Template
from postrain.data.readers import Table
from postrain.data.records import Record
from postrain.errors import ConfigError, RowError

REFUSED = "refused by the chat template: "
MAX_REASON = 100


@contextmanager
def located(table: Table) -> Iterator[None]:
    """Names the file and line in the errors of rows of a table."""
    try:
        yield
    except RowError as error:
        raise ConfigError(f"{table.where(error.row)}: {error.problem}") from None


def drop_refused(
    records: Sequence[Record], template: Template, table: Table, dropped: Counter[str]
) -> tuple[Record, ...]:
    """Drops the records that the template refuses: it may allow no system message, or require alternating turns.

    Counts them by the message of the template. Raises ConfigError if these are most of the records, since then the
    template and not the rows is the mistake.
    """
    with located(table):
        reasons = [_refusal(record, template) for record in records]
    refused = [(record, reason) for record, reason in zip(records, reasons, strict=True) if reason is not None]
    if 2 * len(refused) > len(records):
        first, reason = refused[0]
        raise ConfigError(
            f"{table.where(first.row)}: the chat template refuses the conversation: {reason}; so it does with "
            f"{len(refused)} of {len(records)} rows; use another data.template, such as alpaca, or change the rows"
        )
    dropped.update(f"{REFUSED}{reason[:MAX_REASON]}" for _, reason in refused)
    return tuple(record for record, reason in zip(records, reasons, strict=True) if reason is None)


def _refusal(record: Record, template: Template) -> str | None:
    conversation = record.conversation()
    return conversation and template.refusal(*conversation, row=record.row)
