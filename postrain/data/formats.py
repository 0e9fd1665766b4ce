"""Recognises the ecosystem's usual column names and turns rows into records.

A format is known by the columns it needs; the first in FORMATS whose columns are all there is taken, from the row that
says most to the one that says least. Other names are mapped by `data.columns`. What is wrong with the file (a column
missing in one row, a label that is no boolean) is an error that names the line; what is only unusable for learning (two
transcripts that do not share their prompt) is dropped and counted. Leaves out tool calls and images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.data.readers import Cell, Table
from postrain.data.records import (
    Demonstration,
    Judgement,
    Message,
    Messages,
    Preference,
    Prompt,
    Record,
    Steps,
    Text,
    user,
)
from postrain.data.transcripts import FIRST_TURN, LAST_TURN, transcript
from postrain.types import ConfigError

ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
}
CONVERSATIONS = ("messages", "conversations")
FINAL_ANSWER = "####"
UNSHARED = "chosen and rejected do not share their prompt"
UNANSWERED = "chosen or rejected does not end with the assistant"
CSV_TRUTH = {"true": True, "false": False}

Values = Mapping[str, Any]


class Malformed(Exception):
    """A row that is not what its format promises; says what was expected."""


class Unusable(Exception):
    """A row that is well formed but cannot be learned from; says why."""


@dataclass(frozen=True)
class Format:
    """One way to write a record down."""

    needs: tuple[str, ...]
    """The columns that make a row recognised."""
    uses: tuple[str, ...]
    """Columns that become part of the record if they are there; all others are kept as they are."""
    build: Callable[[int, Values, Values], Record]
    """Makes the record from its row number, its values and the other columns."""


@dataclass(frozen=True)
class Parsed:
    """The records of a table."""

    records: tuple[Record, ...]
    dropped: Mapping[str, int]
    """How many rows could not be used, by reason."""


def parse(table: Table, columns: Mapping[str, str | None]) -> Parsed:
    """The records of a table, after `columns` (ours to theirs) has been applied."""
    renames = {ours: theirs for ours, theirs in columns.items() if theirs}
    found = _recognise(_renamed(table, table.rows[0].values, renames), table) if table.rows else None
    records: list[Record] = []
    dropped: Counter[str] = Counter()
    for row in table.rows:
        values = _renamed(table, row.values, renames)
        try:
            assert found is not None
            records.append(_build(found, row.number, values))
        except Unusable as reason:
            dropped[str(reason)] += 1
        except Malformed as problem:
            raise ConfigError(f"{table.where(row.number)}: {problem}") from None
    return Parsed(tuple(records), dropped)


def _renamed(table: Table, values: Values, renames: Mapping[str, str]) -> Values:
    for ours, theirs in renames.items():
        if theirs not in values:
            raise ConfigError(
                f"data.columns.{ours}={theirs}: {table.name} has no such column; its columns are {', '.join(values)}"
            )
    # A column that is mapped wins over one that has the name already.
    others = {name: value for name, value in values.items() if name not in renames.values()}
    return others | {ours: values[theirs] for ours, theirs in renames.items()}


def _recognise(values: Values, table: Table) -> Format:
    for known in FORMATS:
        if all(name in values for name in known.needs):
            return known
    raise ConfigError(
        f"{table.name}: no known format has the columns {', '.join(values) or '(none)'}; expected for example prompt "
        "and completion, instruction and output, messages, prompt with chosen and rejected, prompt with completion and "
        "label, or text; other names are mapped with data.columns, as in data.columns.prompt=their_name"
    )


def _build(found: Format, number: int, values: Values) -> Record:
    missing = [name for name in found.needs if name not in values]
    if missing:
        raise Malformed(f"the column {missing[0]} is missing; the columns here are {', '.join(values) or '(none)'}")
    taken = {*found.needs, *found.uses}
    return found.build(number, values, {name: value for name, value in values.items() if name not in taken})


# Parts of a row ---------------------------------------------------------------------------------------------------


def _string(values: Values, name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str):
        raise Malformed(f"{name} has to be text, got {value!r:.60}")
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _messages(value: Any, name: str) -> Messages:
    if not _is_list(value) or not value:
        text = "" if name in CONVERSATIONS else "text or "
        raise Malformed(f"{name} has to be {text}a list of messages with role and content, got {value!r:.60}")
    return tuple(_message(item, name) for item in value)


def _message(item: Any, name: str) -> Message:
    if not isinstance(item, Mapping):
        raise Malformed(f"{name} has to hold messages with role and content, got {item!r:.60}")
    role, content = item.get("role", item.get("from")), item.get("content", item.get("value"))
    if role not in ROLES:
        raise Malformed(f"{name} has a message with the role {role!r}; known are {', '.join(sorted(ROLES))}")
    if not isinstance(content, str):
        raise Malformed(f"{name} has a message whose content is no text: {content!r:.60}")
    return Message(ROLES[role], content)


def _prompt(values: Values) -> Messages:
    """A prompt as text, as a transcript or as messages."""
    value = values.get("prompt")
    if not isinstance(value, str):
        return _messages(value, "prompt")
    return transcript(value) if value.startswith(FIRST_TURN) else user(value)


def _reply(value: Any, name: str) -> str:
    """A completion: text, or a list that holds the assistant's message alone."""
    if isinstance(value, str):
        return value
    messages = _messages(value, name)
    if len(messages) != 1 or messages[0].role != "assistant":
        raise Malformed(f"{name} has to be text or one assistant message, got {len(messages)} messages")
    return messages[0].content


# Formats ----------------------------------------------------------------------------------------------------------


def _preference(row: int, values: Values, rest: Values) -> Record:
    prompt, chosen, rejected = _sides(values)
    margin = values.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, int | float)):
        raise Malformed(f"margin has to be a number, got {margin!r:.40}")
    return Preference(row=row, prompt=prompt, chosen=chosen, rejected=rejected, margin=margin or 0.0, columns=rest)


def _sides(values: Values) -> tuple[Messages, str, str]:
    chosen, rejected = values["chosen"], values["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        return (_prompt(values), chosen, rejected) if values.get("prompt") is not None else _split(chosen, rejected)
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed(
            f"chosen and rejected have to be two texts or two message lists, got {chosen!r:.40} and {rejected!r:.40}"
        )
    one, other = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if one[:-1] != other[:-1]:
        raise Unusable(UNSHARED)
    if one[-1].role != "assistant" or other[-1].role != "assistant":
        raise Unusable(UNANSWERED)
    prompt = one[:-1] or (_prompt(values) if values.get("prompt") is not None else ())
    if not prompt:
        raise Malformed("there is no prompt: neither a column prompt nor a user message before chosen")
    return prompt, one[-1].content, other[-1].content


def _split(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """Two transcripts, split exactly at the last assistant turn."""
    # Some files have lost the blank line that opens a transcript.
    chosen, rejected = ("\n\n" + side.lstrip() for side in (chosen, rejected))
    cut = chosen.rfind(LAST_TURN) + len(LAST_TURN)
    if not chosen.startswith(FIRST_TURN) or LAST_TURN not in chosen:
        raise Malformed("the column prompt is missing, and chosen is no transcript (Human: ... Assistant: ...)")
    prompt, answers = chosen[:cut], (chosen[cut:], rejected[cut:])
    if not rejected.startswith(prompt) or LAST_TURN in answers[1]:
        raise Unusable(UNSHARED)
    if any(FIRST_TURN in answer for answer in answers):
        raise Unusable(UNANSWERED)
    return transcript(prompt), answers[0].strip(), answers[1].strip()


def _judgement(row: int, values: Values, rest: Values) -> Record:
    label = _label(values["label"])
    completion = _reply(values["completion"], "completion")
    return Judgement(row=row, prompt=_prompt(values), completion=completion, label=label, columns=rest)


def _label(value: Any) -> bool:
    label = CSV_TRUTH.get(value.strip().lower()) if isinstance(value, Cell) else value
    if not isinstance(label, bool):
        raise Malformed(f"label has to be true or false, got {value!r:.40}; write true or false without quotes")
    return label


def _steps(row: int, values: Values, rest: Values) -> Record:
    steps, labels = values.get("steps", values.get("completions")), values["labels"]
    if not _is_list(steps) or not all(isinstance(step, str) for step in steps):
        raise Malformed(f"steps has to be a list of texts, got {steps!r:.60}")
    if not steps:
        raise Malformed("steps is an empty list; write at least one step, or remove the row")
    if not _is_list(labels) or not all(isinstance(label, bool) for label in labels):
        raise Malformed(f"labels has to be a list of true and false, got {labels!r:.60}")
    if len(steps) != len(labels):
        raise Malformed(f"there are {len(steps)} steps but {len(labels)} labels")
    return Steps(row=row, prompt=_prompt(values), steps=tuple(steps), labels=tuple(labels), columns=rest)


def _conversation(row: int, values: Values, rest: Values) -> Record:
    name = next(name for name in CONVERSATIONS if name in values)
    messages = _messages(values[name], name)
    if messages[-1].role != "assistant" or len(messages) == 1:
        raise Unusable("the conversation does not end with an answer")
    return Demonstration(row=row, messages=messages, columns=rest)


def _completion(row: int, values: Values, rest: Values) -> Record:
    answer = Message("assistant", _reply(values["completion"], "completion"))
    return Demonstration(row=row, messages=(*_prompt(values), answer), columns=rest)


def _instruction(row: int, values: Values, rest: Values) -> Record:
    given = next((values[name] for name in ("input", "context") if values.get(name)), "")
    answer = next(name for name in ("output", "response") if name in values)
    asked = "\n\n".join(part for part in (_string(values, "instruction"), given) if part)
    return Demonstration(row=row, messages=(*user(asked), Message("assistant", _string(values, answer))), columns=rest)


def _question(row: int, values: Values, rest: Values) -> Record:
    """GSM8K: the worked solution is the completion; its final number is what a reward wants to know."""
    solution = _string(values, "answer")
    answer = solution.rpartition(FINAL_ANSWER)[2].strip().replace(",", "")
    messages = (*user(_string(values, "question")), Message("assistant", solution))
    return Demonstration(row=row, messages=messages, columns={**rest, "answer": answer, "solution": solution})


def _only_prompt(row: int, values: Values, rest: Values) -> Record:
    return Prompt(row=row, prompt=_prompt(values), columns=rest)


def _text(row: int, values: Values, rest: Values) -> Record:
    return Text(row=row, text=_string(values, "text"), columns=rest)


FORMATS: tuple[Format, ...] = (
    Format(("chosen", "rejected"), ("prompt", "margin"), _preference),
    Format(("prompt", "completion", "label"), (), _judgement),
    Format(("prompt", "steps", "labels"), (), _steps),
    Format(("prompt", "completions", "labels"), (), _steps),
    Format(("messages",), (), _conversation),
    Format(("conversations",), (), _conversation),
    Format(("prompt", "completion"), (), _completion),
    Format(("instruction", "output"), ("input", "context"), _instruction),
    Format(("instruction", "response"), ("input", "context"), _instruction),
    Format(("question", "answer"), (), _question),
    Format(("prompt",), (), _only_prompt),
    Format(("text",), (), _text),
)
