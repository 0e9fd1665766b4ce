"""Critique and revision, the first half of constitutional AI (Bai et al. 2022, section 3): a model says where its reply
falls short of a principle and writes it anew; the revision is then preferred to the original.

Needs an engine and a model, no reward. Which of two replies follows a principle better is SelfJudge (rewards/judge.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from postrain.data.chat import Template
from postrain.data.conversation import Message, Messages, is_transcript, transcript, user
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
    """A completion and what became of it."""

    prompt: str | Messages
    """Its turns, where there are several."""
    original: str
    critique: str
    """What the model found amiss; empty where there was no room in its context to ask."""
    revised: str
    """The completion written anew; the original where nothing came of it, or it was cut at the engine's limit."""
    principle: str
    """The sentence it was held to."""


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

    What a row becomes depends on its texts, its seed and the weights alone.
    """
    if not principles:
        raise ConfigError("principles: expected at least one sentence that says what makes a reply good")
    drawn = [principles[derive_seed(seed, "principle") % len(principles)] for seed in seeds]
    rows = zip(prompts, completions, drawn, strict=True)
    asked = [
        (*_answered(prompt, said), Message("user", CRITIQUE.format(principle=principle)))
        for prompt, said, principle in rows
    ]
    critiques = _written(engine, model, template, asked, [derive_seed(seed, "critique") for seed in seeds])
    again = [
        (*turns, Message("assistant", critique), Message("user", REVISION.format(principle=principle)))
        for turns, critique, principle in zip(asked, critiques, drawn, strict=True)
    ]
    # Without a critique there is nothing to revise by.
    wanted = [turns if critique else () for turns, critique in zip(again, critiques, strict=True)]
    revised = _written(engine, model, template, wanted, [derive_seed(seed, "revision") for seed in seeds], whole=True)
    found = zip(prompts, completions, critiques, revised, drawn, strict=True)
    return [
        Revision(prompt, said, critique, _begun_like(said, new) if new else said, principle)
        for prompt, said, critique, new, principle in found
    ]


def _begun_like(said: str, new: str) -> str:
    """`new` with the blanks that `said` begins with: a pair shall not differ by what only a template decides."""
    return said[: len(said) - len(said.lstrip())] + new


def preferences(revisions: Sequence[Revision], columns: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of preference data, the revision over the original, with why, and each prompt's other columns; those that a
    revision did not change are left out."""
    return [
        {
            **others,
            "prompt": item.prompt if isinstance(item.prompt, str) else [as_mapping(turn) for turn in item.prompt],
            "chosen": item.revised,
            "rejected": item.original,
            "critique": item.critique,
            "principle": item.principle,
        }
        for item, others in zip(revisions, columns, strict=True)
        if item.revised.strip() != item.original.strip()
    ]


def _answered(prompt: str | Messages, said: str) -> Messages:
    """A prompt and what was said, which may continue the assistant's last message."""
    turns = prompt if not isinstance(prompt, str) else transcript(prompt) if is_transcript(prompt) else user(prompt)
    *before, last = turns
    if not last.prefill:
        return (*turns, Message("assistant", said))
    written = None if last.written is None else last.written + said
    return (*before, Message("assistant", last.content + said, written=written))


def _written(
    engine: Engine,
    model: nn.Module,
    template: Template,
    asked: Sequence[Messages],
    seeds: Sequence[int],
    *,
    whole: bool = False,
) -> list[str]:
    """What the model says after each conversation; nothing where it is empty or leaves no room in the context, and
    where it is cut short, if it has to be `whole`."""
    room = context_length(unwrapped(model).config.to_dict()) - engine.sampling.max_new_tokens
    ids = {place: template.encode_prompt(turns) for place, turns in enumerate(asked) if turns}
    fitting = [place for place, row in ids.items() if len(row) <= room]
    if not fitting:
        return [""] * len(asked)
    stop = Stop(template.stop_ids, engine.sampling.stop, template.decode_all)
    found = engine.generate(
        model, [ids[place] for place in fitting], seeds=[seeds[place] for place in fitting], stop=stop
    )
    said = {
        place: template.decode(completion.ids).strip()
        for place, completion in zip(fitting, found, strict=True)
        if completion.finished or not whole
    }
    return [said.get(place, "") for place in range(len(asked))]
