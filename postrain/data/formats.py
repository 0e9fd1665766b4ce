"""Converts the rows of a table to records: finds the layout (layouts.py) and builds each row by its format (kinds/).

A column is used, kept with the record and listed by the audit as unused, or refused because it would change the meaning
of the row (layouts.py, messages.py). An error in the file (a column missing in one row, a label that is not a boolean)
is a ConfigError with the line. A well-formed row that cannot be used for training (two transcripts with different
prompts) is dropped and counted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from postrain.config.override_text import format_override
from postrain.config.paths import shell_line
from postrain.data.kinds.prompt import Prompt
from postrain.data.kinds.unpaired_preference import as_label
from postrain.data.layouts import (
    FORMATS,
    LABEL_LIKE_COLUMNS,
    PARTS,
    Empty,
    Fields,
    Layout,
    Malformed,
    Unusable,
    empty,
    find_layout,
    names,
    number,
)
from postrain.data.message_fields import KNOWN_ROLES
from postrain.data.messages import awaits_answer, is_messages
from postrain.data.prompt_columns import repeats_prompt
from postrain.data.prompt_template import PromptTemplate
from postrain.data.quality import IfEmpty, empty_error
from postrain.data.readers import Table
from postrain.data.reading_progress import tracked
from postrain.data.records import NO_COLUMNS, Record
from postrain.data.solutions import with_boxed_answer
from postrain.data.values import Cell, clean_values, decode
from postrain.errors import ConfigError

ZERO_WEIGHT = "row of weight 0"

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Parsed:
    """The records of a table."""

    records: tuple[Record, ...]
    dropped: Mapping[str, int]
    """Number of dropped rows by reason."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """Number of rows with an unused column or message field, by its name."""
    repaired: Mapping[str, int] = field(default_factory=dict)
    """Number of changed rows by the change."""
    warned: Mapping[str, int] = field(default_factory=dict)
    """Number of rows by what they should not have."""


def parse(
    table: Table,
    columns: Mapping[str, str | None],
    template: PromptTemplate | None = None,
    *,
    if_empty: IfEmpty = "drop",
) -> Parsed:
    """The records of a table. `columns` maps our column names to those of the table; `template` writes the prompt.

    Raises ConfigError, with `if_empty="error"` also for a row without a prompt, completion or messages.
    """
    if not table.rows:
        return Parsed((), {})
    renames = {ours: theirs for ours, theirs in columns.items() if theirs}
    _check_mapped(table, renames)
    rows = [parse_json_cells(_renamed(row.values, renames), table, row.number) for row in table.rows]
    if template is not None:
        filled = (template.fill(values, table.where(row.number)) for row, values in zip(table.rows, rows, strict=True))
        rows = [{**values, "prompt": prompt} for values, prompt in zip(rows, filled, strict=True)]
    shadowed = renames.keys() - renames.values()
    layout = _layout(table, rows, renames if template is None else {*renames, "prompt"})
    records: list[Record] = []
    dropped, unused, repaired = Counter[str](), Counter[str](), Counter[str](table.repaired)
    warned = Counter[str]()
    for at, values in enumerate(tracked(rows, "parsing rows", len(rows))):
        row, fields = table.rows[at].number, Fields(values, layout)
        try:
            records.append(_record(row, fields))
        except Unusable as reason:
            if isinstance(reason, Empty) and if_empty == "error":
                raise empty_error(table.where(row), reason.part) from None
            dropped[str(reason)] += 1
            continue
        except Malformed as problem:
            raise ConfigError(f"{table.where(row)}: {_mixed_layouts(table, rows, at, layout) or problem}") from None
        used = template.columns if template else ()
        rest = (name for name, value in fields.rest().items() if not empty(value) and name not in used)
        for name in (*rest, *fields.unused.union(shadowed & table.rows[at].values.keys())):
            unused[name] += 1
        for change in fields.repaired:
            repaired[change] += 1
        for warning in fields.warned:
            warned[warning] += 1
    return Parsed(_with_all_answers(records), dropped, unused, repaired, warned)


def _with_all_answers(records: Sequence[Record]) -> tuple[Record, ...]:
    """The records; if some have an answer, those with a solution alone get the answer None: rewards skip these rows."""
    if not any("answer" in record.columns for record in records):
        return tuple(records)
    return tuple(
        replace(record, columns={**record.columns, "answer": None})
        if "solution" in record.columns and "answer" not in record.columns
        else record
        for record in records
    )


def _check_mapped(table: Table, renames: Mapping[str, str]) -> None:
    """Raises ConfigError for a mapped column that no row has."""
    columns = dict.fromkeys(name for row in table.rows for name in row.values) if renames else {}
    for ours, theirs in renames.items():
        if theirs not in columns:
            raise ConfigError(
                f"data.columns.{ours}={theirs}: {table.name} has no such column; its columns are {names(columns)}"
            )


def _renamed(values: Values, renames: Mapping[str, str]) -> Values:
    if not renames:
        return values
    # A mapped column replaces a column that already has the name, also in a row that lacks the mapped one.
    replaced = {*renames, *renames.values()}
    others = {name: value for name, value in values.items() if name not in replaced}
    return others | {ours: values[theirs] for ours, theirs in renames.items() if theirs in values}


def _layout(table: Table, rows: Sequence[Values], mapped: Collection[str]) -> Layout:
    """The layout of a table from the columns of all its rows. Raises ConfigError if no format matches."""
    columns = dict.fromkeys(name for values in rows for name in values)
    label_like = [
        name
        for name in LABEL_LIKE_COLUMNS
        if name in columns and all(as_label(values.get(name)) is not None for values in rows)
    ]
    found = find_layout(columns, mapped, label_like)
    if found is None:
        if mapped_case := _mapping_of_case(columns):
            raise ConfigError(
                f"{table.name}: no known layout has the columns {names(columns)}; names are lower case, so write "
                f"{mapped_case}"
            )
        raise ConfigError(
            f"{table.name}: no known layout has the columns {names(columns)}; expected for example prompt and "
            "completion, instruction and output, messages, prompt with chosen and rejected, prompt with completion and "
            "label, or text; other names are mapped with data.columns, as in data.columns.prompt=their_name"
        )
    turns = found.parts["messages"]
    filled = [row for row in rows if not all(empty(row.get(name)) for name in turns)]
    asks = filled and all(any(awaits_answer(row.get(name)) for name in turns) for row in filled)
    if "messages" in found.format.needs and asks:
        return replace(found, format=FORMATS["prompt"], parts={**found.parts, "prompt": turns})
    answers = found.format.answers
    return replace(found, repeats_prompt=all(_repeats(found, row, answers) for row in rows)) if answers else found


def _mapping_of_case(columns: Collection[str]) -> str:
    """The overrides that map columns with the names of a layout in another case, as in Prompt; else empty."""
    lower = {name.strip().lower(): name for name in columns}
    found = find_layout(lower, (), ())
    if found is None:
        return ""
    parts = found.format.needs
    return shell_line(format_override(f"data.columns.{part}", lower[found.parts[part][0]]) for part in parts)


def _mixed_layouts(table: Table, rows: Sequence[Values], at: int, layout: Layout) -> str:
    """The message for a row that has none of its table's layout columns, but those of another; else empty."""
    needs = layout.format.needs
    own = find_layout(rows[at], layout.mapped & rows[at].keys(), ())
    if own is None or any(name in rows[at] for part in needs for name in layout.parts[part]):
        return ""
    column = layout.parts[needs[0]][0]
    other = next(row.number for row, values in zip(table.rows, rows, strict=True) if column in values)
    here, there = (" and ".join(form.needs) for form in (own.format, layout.format))
    return f"has {here}, {table.unit} {other} has {there}; use one layout per file"


def _repeats(layout: Layout, values: Values, answers: Sequence[str]) -> bool:
    """True if the answers of a row begin with its prompt, or if one is empty."""
    prompt, *rest = (next((values.get(name) for name in layout.parts[part]), None) for part in ("prompt", *answers))
    return any(map(empty, rest)) or repeats_prompt(prompt, rest)


def _record(row: int, fields: Fields) -> Record:
    record = fields.layout.format.build(row, fields)
    if not isinstance(record, Prompt):
        _check_weight(fields)
    fields.check_unused()
    # A column of the row takes precedence over a column that the format derives from the answer.
    columns = with_boxed_answer({**record.columns, **fields.rest()})
    return replace(record, columns=columns or NO_COLUMNS)


def _check_weight(fields: Fields) -> None:
    """Raises Unusable for a row of weight 0, and Malformed for other weights than 1."""
    found = fields.optional("weight")
    if found is None:
        return
    name, value = found
    weight = float(value) if isinstance(value, bool) else number(value, name)
    if weight == 0:
        raise Unusable(ZERO_WEIGHT)
    if weight != 1:
        raise Malformed(f"{name} has to be 0 (drop the row) or 1, got {value!r:.40}; weighted rows are not supported")


# Lists and messages as text in a cell, as in CSV files and some exports -------------------------------------------

TURNS = frozenset(name for part in ("prompt", "completion", "chosen", "rejected") for name in PARTS[part])
"""Columns that hold text, or messages."""
LISTS = frozenset(name for part in ("history", "steps", "labels") for name in PARTS[part])
"""Columns that hold lists, as text only in CSV files."""
PYTHON_MESSAGES = re.compile(
    rf"""\s*\[?\s*\{{\s*(?=')(?=.*'(?:role|from)'\s*:\s*'(?:{"|".join(KNOWN_ROLES)})')(?=.*'(?:content|value)'\s*:)""",
    re.DOTALL,
)
"""Messages written as a Python literal, not as JSON."""


def parse_json_cells(values: Mapping[str, Any], table: Table, row: int) -> Mapping[str, Any]:
    """The columns of a row with lists and messages parsed from text. Raises ConfigError for text that is not JSON."""
    if not any(isinstance(value, str) and ("{" in value or "[" in value) for value in values.values()):
        return values
    where = table.where(row)
    return {
        name: _parse_cell(name, value, where) if isinstance(value, str) else value for name, value in values.items()
    }


def _parse_cell(name: str, value: str, where: str) -> Any:
    """The list in a cell. In a column of TURNS, text is read as messages only if it is a JSON list of messages, or one:
    an answer may be JSON too."""
    start = value.lstrip()[:1]
    must_be_list = name in PARTS["messages"] or (name in LISTS and isinstance(value, Cell) and start == "[")
    if start not in ("[", "{") or not (must_be_list or name in TURNS):
        return value
    try:
        found = decode(value)
    except json.JSONDecodeError:
        if not must_be_list and not PYTHON_MESSAGES.match(value):
            return value
        raise ConfigError(
            f"{where}: {name} holds a list as text that is not JSON, got {value!r:.60}; write JSON lines, or the "
            "column with json.dumps"
        ) from None
    if not must_be_list and not is_messages(found):
        return value
    # Escape sequences in the text are decoded only now, so they need the checks of values.py too.
    return clean_values({name: found}, where)[0][name]
