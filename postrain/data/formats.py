"""Turns rows into records: the layout of a table says which columns hold the parts (layouts.py), this file joins them.

Every column is used, stays with the record and is named by the audit as unused, or is refused because it would change
what the row means (fields.py, messages.py). What is wrong with the file (a column missing in one row, a label that is
not a boolean) is an error that names the line; what is only unusable for learning (two transcripts that do not share
their prompt) is dropped and counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from postrain.data.fields import Fields, Malformed, Unusable, empty, is_list, names, number, text
from postrain.data.layouts import OPINIONS, Layout, recognise
from postrain.data.messages import messages, waits
from postrain.data.packed import unpacked
from postrain.data.prompts import agreed, asked, begun, conversation, cut_prompt, repeats_prompt, says_again
from postrain.data.readers import Table
from postrain.data.records import Demonstration, Judgement, Message, Messages, Preference, Prompt, Record, Steps, Text
from postrain.data.transcripts import FIRST_TURN, LAST_TURN, transcript
from postrain.data.verdicts import label, truth, verdict
from postrain.types import ConfigError

FINAL_ANSWER = "####"
UNSHARED = "chosen and rejected do not share their prompt"
UNANSWERED = "chosen or rejected does not end with the assistant"
NO_ANSWER = "the conversation does not end with an answer"
WEIGHTLESS = "row of weight 0"

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Parsed:
    """The records of a table."""

    records: tuple[Record, ...]
    dropped: Mapping[str, int]
    """How many rows could not be used, by reason."""
    unused: Mapping[str, int] = field(default_factory=dict)
    """How many rows hold a column or a field of a message that no record was made of, by its name."""
    repaired: Mapping[str, int] = field(default_factory=dict)
    """How many rows have been changed before use, by what was done."""


def parse(table: Table, columns: Mapping[str, str | None]) -> Parsed:
    """The records of a table, after `columns` (ours to theirs) has been applied."""
    if not table.rows:
        return Parsed((), {})
    renames = {ours: theirs for ours, theirs in columns.items() if theirs}
    rows = [(row.number, unpacked(_renamed(table, row.values, renames), table.where(row.number))) for row in table.rows]
    shadowed = {name for name in renames if name in table.rows[0].values and name not in renames.values()}
    layout = _layout(table, [values for _, values in rows], renames)
    records: list[Record] = []
    dropped, unused, repaired = Counter[str](), Counter[str](), Counter[str](table.repaired)
    for row, values in rows:
        fields = Fields(values, layout)
        try:
            records.append(_record(row, fields))
        except Unusable as reason:
            dropped[str(reason)] += 1
            continue
        except Malformed as problem:
            raise ConfigError(f"{table.where(row)}: {problem}") from None
        unused.update(name for name, value in fields.rest().items() if not empty(value))
        unused.update(fields.unused | shadowed)
        repaired.update(fields.repaired)
    return Parsed(tuple(records), dropped, unused, repaired)


def _renamed(table: Table, values: Values, renames: Mapping[str, str]) -> Values:
    for ours, theirs in renames.items():
        if theirs not in values:
            raise ConfigError(
                f"data.columns.{ours}={theirs}: {table.name} has no such column; its columns are {names(values)}"
            )
    # A column that is mapped wins over one that has the name already.
    others = {name: value for name, value in values.items() if name not in renames.values()}
    return others | {ours: values[theirs] for ours, theirs in renames.items()}


def _layout(table: Table, rows: Sequence[Values], renames: Mapping[str, str]) -> Layout:
    """The layout of a table, by all columns that its rows have."""
    columns = dict.fromkeys(name for values in rows for name in values)
    opinions = [
        name for name in OPINIONS if name in columns and all(truth(values.get(name)) is not None for values in rows)
    ]
    found = recognise(columns, renames, opinions)
    if found is None:
        raise ConfigError(
            f"{table.name}: no known layout has the columns {names(columns)}; expected for example prompt and "
            "completion, instruction and output, messages, prompt with chosen and rejected, prompt with completion and "
            "label, or text; other names are mapped with data.columns, as in data.columns.prompt=their_name"
        )
    if found.kind == "conversation" and all(any(waits(row.get(m)) for m in found.parts["messages"]) for row in rows):
        return replace(found, kind="prompt", parts={**found.parts, "prompt": found.parts["messages"]})
    answers = {"preference": ("chosen", "rejected"), "answer": ("completion",)}.get(found.kind)
    return found if answers is None else replace(found, repeats=all(_repeats(found, row, answers) for row in rows))


def _repeats(layout: Layout, values: Values, answers: Sequence[str]) -> bool:
    """True where the answers of a row begin with its prompt."""
    prompt, *rest = (next((values.get(name) for name in layout.parts[part]), None) for part in ("prompt", *answers))
    return repeats_prompt(prompt, rest)


def _record(row: int, fields: Fields) -> Record:
    record = BUILDERS[fields.layout.kind](row, fields)
    if not isinstance(record, Prompt):
        _weigh(fields)
    fields.refuse_rest()
    # A column of the row wins over the parts that its answer was taken into.
    return replace(record, columns={**record.columns, **fields.rest()})


def _weigh(fields: Fields) -> None:
    """Drops a row of weight 0; other weights than 1 are refused."""
    found = fields.optional("weight")
    if found is None:
        return
    name, value = found
    weight = float(value) if isinstance(value, bool) else number(value, name)
    if weight == 0:
        raise Unusable(WEIGHTLESS)
    if weight != 1:
        raise Malformed(f"{name} has to be 0 (leave the row out) or 1, got {value!r:.40}; rows cannot be weighted")


# Pairs ------------------------------------------------------------------------------------------------------------


def _preference(row: int, fields: Fields) -> Record:
    prompt = _pair_prompt(fields)
    shared, chosen, rejected = _sides(fields, prompt)
    whole = agreed(prompt, shared, "chosen and rejected")
    if not whole:
        raise Malformed("there is no prompt: neither a column prompt nor a user message before chosen")
    margin = fields.optional("margin")
    value = number(margin[1], margin[0]) if margin else 0.0
    return Preference(row=row, prompt=begun(fields, whole), chosen=chosen, rejected=rejected, margin=value)


def _pair_prompt(fields: Fields) -> Messages:
    """The prompt column, or messages that wait for an answer; () where the sides bring their prompt."""
    prompt = asked(fields)
    found = fields.peek("messages")
    if found is None or empty(found[1]):
        return prompt
    turns = messages(fields, found[1], found[0])
    # Messages that end with an answer are one of the sides once more.
    if turns[-1].role == "assistant":
        return prompt
    fields.find("messages")
    return agreed(prompt, turns, found[0])


def _sides(fields: Fields, prompt: Messages) -> tuple[Messages, str, str]:
    """The turns that both sides begin with, and the two answers."""
    (first, chosen), (second, rejected) = fields.needed("chosen"), fields.needed("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if not prompt:
            return _split(str(chosen), str(rejected), first)
        better, worse = cut_prompt(fields, (str(chosen), str(rejected)))
        return (), better, worse
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise Malformed(
            f"{first} and {second} have to be two texts or two message lists, got {chosen!r:.40} and {rejected!r:.40}"
        )
    one, other = (
        messages(fields, side, name, or_text="text or ") for side, name in ((chosen, first), (rejected, second))
    )
    if one[:-1] != other[:-1]:
        raise Unusable(UNSHARED)
    if one[-1].role != "assistant" or other[-1].role != "assistant":
        raise Unusable(UNANSWERED)
    return one[:-1], _answer_of(one, first), _answer_of(other, second)


def _answer_of(turns: Messages, name: str) -> str:
    """The last message's content, which has to be learned from."""
    if not turns[-1].learned:
        raise Malformed(f"{name} ends with a message of weight 0, so nothing is left to compare; remove the row")
    return turns[-1].content


def _split(chosen: str, rejected: str, name: str) -> tuple[Messages, str, str]:
    """Two transcripts, split exactly at the last assistant turn."""
    # Some files have lost the blank line that opens a transcript.
    chosen, rejected = ("\n\n" + side.lstrip() for side in (chosen, rejected))
    cut = chosen.rfind(LAST_TURN) + len(LAST_TURN)
    if not chosen.startswith(FIRST_TURN) or LAST_TURN not in chosen:
        raise Malformed(f"the column prompt is missing, and {name} is not a transcript (Human: ... Assistant: ...)")
    prompt, answers = chosen[:cut], (chosen[cut:], rejected[cut:])
    if not rejected.startswith(prompt) or LAST_TURN in answers[1]:
        raise Unusable(UNSHARED)
    if any(FIRST_TURN in answer for answer in answers):
        raise Unusable(UNANSWERED)
    return transcript(prompt), answers[0].strip(), answers[1].strip()


# Answers ----------------------------------------------------------------------------------------------------------


def _conversation(row: int, fields: Fields) -> Record:
    turns = begun(fields, conversation(fields))
    if turns[-1].role != "assistant" or len(turns) == 1:
        raise Unusable(NO_ANSWER)
    return _judged(Demonstration(row=row, messages=turns), fields)


def _answer(row: int, fields: Fields) -> Record:
    prompt = asked(fields)
    name, value = fields.needed("completion")
    if name == "answer" and isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        (said,) = cut_prompt(fields, (str(value),))
        turns = (*prompt, Message("assistant", said))
    else:
        said = messages(fields, value, name, or_text="text or ")
        turns = said if len(said) > len(prompt) > 0 and says_again(prompt, said[: len(prompt)]) else prompt + said
        if turns[-1].role != "assistant":
            raise Malformed(f"{name} has to be text, or messages that end with the assistant's, got {len(said)}")
    columns = _reference(name, value) if isinstance(value, str) else {}
    return _judged(Demonstration(row=row, messages=begun(fields, turns), columns=columns), fields)


def _reference(name: str, answer: str) -> Mapping[str, Any]:
    """What a reward compares with: the whole answer to a question, and its final part after GSM8K's ####."""
    if name == "solution":
        return {"solution": answer}
    if name != "answer":
        return {}
    return {"answer": answer.rpartition(FINAL_ANSWER)[2].strip().replace(",", ""), "solution": answer}


def _judged(record: Demonstration, fields: Fields) -> Record:
    """The record itself, or a judgement where the row says whether its answer is good."""
    liked = verdict(fields)
    if liked is None:
        return record
    *prompt, _ = record.messages
    said = _answer_of(record.messages, "the conversation")
    return Judgement(row=record.row, prompt=tuple(prompt), completion=said, label=liked, columns=record.columns)


# Others -----------------------------------------------------------------------------------------------------------


def _steps(row: int, fields: Fields) -> Record:
    (name, steps), (_, labels) = fields.needed("steps"), fields.needed("labels")
    if not is_list(steps) or not all(isinstance(step, str) for step in steps):
        raise Malformed(f"{name} has to be a list of texts, got {steps!r:.60}")
    if not steps:
        raise Malformed(f"{name} is an empty list; write at least one step, or remove the row")
    if not is_list(labels):
        raise Malformed(f"labels has to be a list of true and false, got {labels!r:.60}")
    right = tuple(label(fields, one, "each of the labels") for one in labels)
    if len(steps) != len(labels):
        raise Malformed(f"there are {len(steps)} steps but {len(labels)} labels")
    return Steps(row=row, prompt=begun(fields, asked(fields)), steps=tuple(steps), labels=right)


def _prompt(row: int, fields: Fields) -> Record:
    fields.needed("prompt")
    return Prompt(row=row, prompt=begun(fields, asked(fields)))


def _text(row: int, fields: Fields) -> Record:
    name, value = fields.needed("text")
    return Text(row=row, text=text(value, name))


BUILDERS: Mapping[str, Callable[[int, Fields], Record]] = {
    "preference": _preference,
    "steps": _steps,
    "conversation": _conversation,
    "answer": _answer,
    "prompt": _prompt,
    "text": _text,
}
