"""What comes before an answer: the columns that hold the prompt, the system message and earlier turns, joined.

Two columns that say the same are used once; two that differ are refused with both names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from postrain.data.conversation import LAST_TURN, Message, Messages, is_transcript
from postrain.data.layouts import PARTS, Fields, Malformed, empty, is_list, text
from postrain.data.messages import history, messages, parse_prompt

REPEATED = "prompt cut off the answer that repeats it"


def read_prompt(fields: Fields) -> Messages:
    """The turns of the prompt column, with `input` or `context` below a prompt of one text; () without a prompt."""
    found, given = fields.find("prompt"), fields.peek("input")
    if found is None:
        return ()
    name, value = found
    plain = isinstance(value, str) and not is_transcript(value)
    # Beside a prompt alone, a list or an object is what a reward reads.
    if plain and given and not (empty(given[1]) or isinstance(given[1], str)) and fields.layout.format.name != "prompt":
        raise Malformed(f"{given[0]} has to be text, which is put below the prompt, got {given[1]!r:.60}")
    if plain and given and isinstance(given[1], str):
        fields.find("input")
        # Some files carry the context inside of the prompt already.
        if given[1].strip() not in value:
            value = "\n\n".join(part for part in (str(value), str(given[1])) if part)
    return parse_prompt(fields, value, name)


def add_system_and_history(fields: Fields, turns: Messages) -> Messages:
    """The turns with the columns `system` and `history` before them, unless they begin with those already."""
    earlier = fields.optional("history")
    said = history(fields, earlier[1], earlier[0]) if earlier else ()
    opening = tuple(turn for turn in turns[:1] if turn.role == "system")
    rest = turns[len(opening) :]
    rest = rest if rest[: len(said)] == said else said + rest
    system = fields.optional("system")
    if system is None:
        return opening + rest
    content = text(system[1], system[0])
    if opening and opening[0].content.strip() != content.strip():
        raise Malformed(f"{system[0]} and the first message both hold a system prompt and differ; remove one of them")
    return (*(opening or (Message("system", content),)), *rest)


def merge_prompts(prompt: Messages, shared: Messages, sides: str) -> Messages:
    """The prompt of a pair whose sides begin with the turns `shared`, beside a prompt column."""
    if not shared or not prompt:
        return shared or prompt
    if messages_repeated(prompt, shared):
        return shared
    if shared[0].role == "assistant":
        return prompt + shared
    raise Malformed(f"prompt and the turns that begin {sides} differ; remove the column prompt or correct the turns")


def messages_repeated(some: Sequence[Message], turns: Sequence[Message]) -> bool:
    """True where everything in `some` stands in the turns too."""
    return all(any(message.content.strip() in turn.content for turn in turns) for message in some)


def read_conversation(fields: Fields) -> Messages:
    """The turns of the column `messages`. Columns that repeat a part of it are used, those that differ refused."""
    name, value = fields.needed("messages")
    turns = messages(fields, value, name)
    if "messages" in fields.layout.mapped:
        return turns
    for part in ("prompt", "completion"):
        for other in (column for column in PARTS[part] if column in fields.values):
            if not all(any(said.strip() in turn.content for turn in turns) for said in _texts(fields.values[other])):
                raise Malformed(
                    f"{other} and {name} both hold the {part} and differ; to use {name} alone give "
                    f"data.columns.messages={name}"
                )
            fields.used.add(other)
    return turns


def _texts(value: Any) -> list[str]:
    """The texts in a column of text or of messages."""
    if isinstance(value, str):
        return [value]
    items = value if is_list(value) else [value]
    found = [item.get("content", item.get("value")) for item in items if isinstance(item, Mapping)]
    return [said for said in found if isinstance(said, str)]


def last_answer(turns: Messages, name: str) -> str:
    """The last message's content, which has to be learned from."""
    if not turns[-1].in_loss:
        raise Malformed(f"{name} ends with a message of weight 0, so nothing is left to compare; remove the row")
    return turns[-1].content


def repeats_prompt(prompt: Any, answers: Sequence[Any]) -> bool:
    """True where all answers are texts that begin with the prompt and say more."""
    if not isinstance(prompt, str) or not prompt.strip():
        return False
    texts = [answer for answer in answers if isinstance(answer, str)]
    return len(texts) == len(answers) and all(t.startswith(prompt) and len(t) > len(prompt) for t in texts)


def strip_repeated_prompt(fields: Fields, answers: tuple[str, ...]) -> tuple[str, ...]:
    """The answers without the prompt that all of them begin with.

    A short prompt may begin an answer by chance ("Hi", "Hi there"), so text is cut only where every row of the table
    has it so; transcripts always.
    """
    found = fields.peek("prompt")
    if found is None or not repeats_prompt(found[1], answers):
        return answers
    prompt = str(found[1])
    spoken = is_transcript("\n\n" + prompt.lstrip())
    if not spoken and not fields.layout.repeats:
        return answers
    fields.repaired.add(REPEATED)
    rest = tuple(answer[len(prompt) :] for answer in answers)
    return tuple(part.removeprefix(LAST_TURN).strip() for part in rest) if spoken else rest
