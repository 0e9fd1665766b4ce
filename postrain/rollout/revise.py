"""Critique and revision, the first half of constitutional AI (Bai et al. 2022, section 3): a model criticises its
reply by a principle and revises it; the pair (revision, original) is preference data.

Needs an engine and a model, no reward. Which of two replies follows a principle better is SelfJudge (rewards/judge.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from postrain.data.chat import Template
from postrain.data.conversation import Message, Messages, is_transcript, transcript, user, without_tools
from postrain.data.rendering import as_mapping
from postrain.errors import ConfigError
from postrain.models.directory import context_length
from postrain.models.parts import unwrapped
from postrain.rollout.engine import Engine
from postrain.seeds import derive_seed
from postrain.types import Stop

CRITIQUE = """\
Here is a principle for replies: {principle}
Say in one or two sentences where your last reply falls short of it."""
REVISION = """\
Now write your reply to the request anew, so that it follows the principle: {principle}
Write the reply only."""


@dataclass(frozen=True)
class Revision:
    """A completion with its critique and revision."""

    prompt: str | Messages
    """Text, or messages of several turns."""
    original: str
    critique: str
    """The model's critique; empty if the conversation exceeds the context."""
    revised: str
    """The revised completion; the original if the revision is empty or truncated."""
    principle: str
    """The principle of the critique."""


def revise(
    engine: Engine,
    model: nn.Module,
    template: Template,
    prompts: Sequence[str | Messages],
    completions: Sequence[str],
    principles: Sequence[str],
    seeds: Sequence[int],
) -> list[Revision]:
    """One critique and one revision of each completion, in order, by a principle drawn from the row's seed.

    A revision depends only on its texts, its seed and the weights.
    """
    drawn = [draw_principle(principles, seed) for seed in seeds]
    rows = zip(prompts, completions, drawn, strict=True)
    conversations = [
        (*_with_reply(prompt, reply), Message("user", CRITIQUE.format(principle=principle)))
        for prompt, reply, principle in rows
    ]
    critiques = _replies(engine, model, template, conversations, [derive_seed(seed, "critique") for seed in seeds])
    revision_conversations = [
        (*turns, Message("assistant", critique), Message("user", REVISION.format(principle=principle)))
        for turns, critique, principle in zip(conversations, critiques, drawn, strict=True)
    ]
    # Rows without a critique are not revised.
    nonempty = [turns if critique else () for turns, critique in zip(revision_conversations, critiques, strict=True)]
    revised = _replies(
        engine, model, template, nonempty, [derive_seed(seed, "revision") for seed in seeds], finished_only=True
    )
    found = zip(prompts, completions, critiques, revised, drawn, strict=True)
    return [
        Revision(prompt, reply, critique, _with_leading_blanks_of(reply, new) if new else reply, principle)
        for prompt, reply, critique, new, principle in found
    ]


def draw_principle(principles: Sequence[str], seed: int) -> str:
    """The principle of a row with this seed."""
    if not principles:
        raise ConfigError("principles: expected at least one sentence that describes a good reply")
    return principles[derive_seed(seed, "principle") % len(principles)]


def _with_leading_blanks_of(reply: str, new: str) -> str:
    """`new` with the leading blanks of `reply`, which depend on the chat template only."""
    return reply[: len(reply) - len(reply.lstrip())] + new


def preferences(revisions: Sequence[Revision], columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of preference data, chosen = revision, rejected = original, with critique, principle and the
    prompt's other columns; unchanged completions are skipped."""
    return [
        {
            **others,
            "prompt": item.prompt
            if isinstance(item.prompt, str)
            else [as_mapping(turn) for turn in without_tools(item.prompt)],
            "chosen": item.revised,
            "rejected": item.original,
            "critique": item.critique,
            "principle": item.principle,
        }
        for item, others in zip(revisions, columns, strict=True)
        if item.revised.strip() != item.original.strip()
    ]


def _with_reply(prompt: str | Messages, reply: str) -> Messages:
    """A prompt and the reply, which may continue the assistant's last message."""
    turns = prompt if not isinstance(prompt, str) else transcript(prompt) if is_transcript(prompt) else user(prompt)
    *before, last = turns
    if not last.prefill:
        return (*turns, Message("assistant", reply))
    written = None if last.written is None else last.written + reply
    return (*before, Message("assistant", last.content + reply, written=written))


def _replies(
    engine: Engine,
    model: nn.Module,
    template: Template,
    conversations: Sequence[Messages],
    seeds: Sequence[int],
    *,
    finished_only: bool = False,
) -> list[str]:
    """The model's reply to each conversation; empty for an empty conversation or one that exceeds the context, and for
    a truncated reply with `finished_only`."""
    room = context_length(unwrapped(model).config.to_dict()) - engine.sampling.max_new_tokens
    ids = {index: template.encode_prompt(turns) for index, turns in enumerate(conversations) if turns}
    fitting = [index for index, row in ids.items() if len(row) <= room]
    if not fitting:
        return [""] * len(conversations)
    stop = Stop(template.stop_ids, engine.sampling.stop, template.decode_all)
    found = engine.generate(
        model, [ids[index] for index in fitting], seeds=[seeds[index] for index in fitting], stop=stop
    )
    texts = {
        index: template.decode(completion.ids).strip()
        for index, completion in zip(fitting, found, strict=True)
        if completion.finished or not finished_only
    }
    return [texts.get(index, "") for index in range(len(conversations))]
