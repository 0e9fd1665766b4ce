"""What a command line says to the stages of a pipeline.

stage.NAME.KEY=VALUE   one stage (or branch: stage.NAME.BRANCH.KEY=VALUE), over everything else
KEY=VALUE              every stage that has the key, over the pipeline's YAML; what a stage takes from another stands
GROUP=OPTION           the stages that do not choose an option of this group themselves
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from postrain.jobs.stages import REFERENCE, Stage, misspelt
from postrain.types import ConfigError

# Said of the pipeline or of this session; no stage hears of it.
PIPELINE_KEYS = ("pipeline", "experiment", "resume", "allow_change", "debug", "name", "paths")


@dataclass(frozen=True)
class Words:
    """The words of a command line, by whom they are for."""

    shared: tuple[str, ...]
    own: dict[str, list[str]] = field(default_factory=dict)
    """For a stage, or a branch of it, by its name."""


def split(words: Iterable[str], stages: Sequence[Stage]) -> Words:
    """Tells words for all from those for one, all problems in one ConfigError."""
    names = [stage.name for stage in stages]
    found, problems = Words(tuple(word for word in words if _is_shared(word)), {}), []
    for word in words:
        if not word.startswith("stage."):
            continue
        key, equals, value = word.removeprefix("stage.").partition("=")
        parts = key.split(".")
        size = 2 if ".".join(parts[:2]) in names else 1
        name = ".".join(parts[:size])
        if not any(name in (known, known.partition(".")[0]) for known in names):
            problems.append(f"{word}: " + misspelt(parts[0], list(dict.fromkeys(n.partition(".")[0] for n in names))))
        elif not parts[size:]:
            problems.append(f"{word}: expected a setting of the stage, as in stage.{name}.seed=1")
        else:
            found.own.setdefault(name, []).append(".".join(parts[size:]) + equals + value)
    if problems:
        raise ConfigError("\n".join(problems))
    return found


def _is_shared(word: str) -> bool:
    return not word.startswith("stage.") and key_of(word).partition(".")[0] not in PIPELINE_KEYS


def key_of(word: str) -> str:
    """What an override sets."""
    return word.lstrip("+~").partition("=")[0]


def for_stage(
    words: Words, stage: Stage, takes: Callable[[str], bool], groups: Collection[str]
) -> tuple[list[str], set[str]]:
    """The overrides of a stage, the last of equal ones to be taken, and which shared words are among them.

    `takes` says whether a key is one of this kind of stage's; `groups` are the keys that choose an option.
    """
    own = [
        *words.own.get(stage.name.partition(".")[0], []),
        *(words.own.get(stage.name, []) if "." in stage.name else []),
    ]
    chosen = {key_of(word) for word in stage.overrides}
    taken = {key_of(word) for word in stage.overrides if REFERENCE.search(word)}
    heard = [
        word
        for word in words.shared
        if takes(key := key_of(word)) and key not in taken and not (key in groups and key in chosen)
    ]
    return [*stage.overrides, *heard, *own], set(heard)


def unheard(words: Words, heard: Collection[str]) -> list[str]:
    """A line for each shared word that reached no stage."""
    return [
        f"{word}: no stage takes it, each chooses its own or has no such key; for one stage say stage.NAME.{word}"
        for word in words.shared
        if word not in heard
    ]
