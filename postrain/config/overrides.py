"""The command line, before Hydra reads it: group options, `hydra.` keys and the grammar, all problems in one error.

Hydra stops at its first unknown key and forgets the `+`-ed ones. So every `key=value` is passed as `++key=value`, which
Hydra always accepts, and check.py holds the composed config against the constructors. Leaves out what only the composed
config can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, QuotedString
from hydra.errors import HydraException
from omegaconf import OmegaConf

from postrain.config import renamed
from postrain.config.arguments import parse, unknown_hydra_keys
from postrain.config.foreign_keys import suggest_option
from postrain.config.groups import SWEEP, Groups, groups_of, groups_taken, primary_config
from postrain.config.paths import command
from postrain.config.schema import LONGEST
from postrain.errors import ConfigError

# Keys of a study that make several jobs by themselves.
VARIED = ("sweep.grid", "sweep.jobs", "sweep.search", "sweep.seeds")
# Launchers that are packages of their own, and the extra that brings each.
EXTRAS = {"joblib": "joblib", "submitit_slurm": "slurm", "submitit_local": "slurm"}
# Those that no version of can be installed beside the Hydra that is needed here.
UNAVAILABLE = ("ray",)
NAMED = "model.name: only names the model in folders and reports; choose one with model=OPTION or model.path=PATH"
DEEPEST = 20
"""Brackets inside each other that a value may have."""
# Command of each primary config.
PROGRAMS = {"config": command("train"), "generate": command("generate"), "evaluate": command("evaluate")}


@dataclass(frozen=True)
class ParsedCommandLine:
    """A command line (without the program's name), taken apart."""

    arguments: list[str]
    """Arguments passed to Hydra; flags come last."""
    sweep: tuple[str, ...] | None
    """Overrides of the sweep alone: sweep=NAME, sweep.KEY=VALUE, lists of values; None for a single run."""


def prepare(argv: Sequence[str], conf: Path, config_name: str = "config") -> ParsedCommandLine:
    """A command line as Hydra and the sweep get it; all problems in one ConfigError."""
    arguments = parse(argv)
    if arguments.shell_completion:
        return ParsedCommandLine(list(argv), None)
    flags = [token for token in argv if token not in arguments.overrides]
    root, extra = arguments.config_name or config_name, arguments.config_dir
    overrides = _checked(arguments.overrides, conf, root=root, extra=extra, multirun=arguments.multirun)
    known = groups_of(conf, extra)
    words = [(_forced(override, known), _is_swept(override)) for override in overrides]
    if not arguments.multirun and not any(override.key_or_group == SWEEP for override in overrides):
        return ParsedCommandLine([word for word, _ in words] + flags, None)
    if not any(_varies(override) for override in overrides):
        raise ConfigError(
            "-m: no key has several values; list them, as in method.kl_coef=0.05,0.2 or seed=0,1,2, or choose a "
            "study: sweep=NAME; a single run needs no -m"
        )
    flags = [flag for flag in flags if flag not in ("-m", "--multirun")]
    swept = tuple(word.removeprefix("++") for word, swept in words if swept)
    return ParsedCommandLine([word for word, swept in words if not swept] + flags, swept)


def _varies(override: Override) -> bool:
    key = override.key_or_group
    return override.is_sweep_override() or key == SWEEP or key.startswith(VARIED)


def job_overrides() -> list[str]:
    """The overrides of the running Hydra job as people write them: without ++, references as they stand."""
    written: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return [str(word).removeprefix("++") for word in written]


def _is_swept(override: Override) -> bool:
    return override.is_sweep_override() or override.key_or_group.partition(".")[0] == SWEEP


def forced(
    tokens: Sequence[str], conf: Path, *, root: str, extra: str | None = None, multirun: bool = False
) -> list[str]:
    """Overrides as Hydra gets them, `++key=value` but for choices of a group; all problems in one ConfigError.

    `root` is the primary config they are for, `extra` a further folder of config groups.
    """
    known = groups_of(conf, extra)
    overrides = _checked(tokens, conf, root=root, extra=extra, multirun=multirun)
    return [_forced(override, known) for override in overrides]


def last_choices(words: Sequence[str]) -> list[str]:
    """Forced words with one choice for each group, the last; values come after all choices, and the last one wins."""
    choices = {_key(word): word for word in words if not word.startswith(("+", "~"))}
    return [*choices.values(), *(word for word in words if word.startswith(("+", "~")))]


def _key(word: str) -> str:
    return word.partition("=")[0]


def _checked(tokens: Sequence[str], conf: Path, *, root: str, extra: str | None, multirun: bool) -> list[Override]:
    """The overrides read, or everything that is wrong with them."""
    known = groups_of(conf, extra)
    problems: list[str] = []
    overrides: list[Override] = []
    for token in renamed.overrides(tokens):
        try:
            _refuse_depth(token)
            overrides += OverridesParser.create().parse_overrides([token])
        # ValueError: of whole numbers of thousands of digits.
        except (HydraException, ValueError) as error:
            problems.append(_unreadable(token, error))
    if not multirun and not any(override.key_or_group == SWEEP for override in overrides):
        problems += [_needs_multirun(override) for override in overrides if override.is_sweep_override()]
    problems += [problem for override in overrides for problem in _problems(override, known)]
    problems += [problem for override in overrides for problem in _undeletable(override, conf, root)]
    keys = {override.key_or_group for override in overrides}
    if "model.name" in keys and not keys & {"model", "model.path"}:
        problems.append(NAMED)
    staged = any(override.key_or_group == "pipeline" for override in overrides)
    problems += [problem for override in overrides for problem in _misplaced(override, conf, root, staged)]
    if problems:
        raise ConfigError("\n".join(problems))
    return overrides


def _refuse_depth(token: str) -> None:
    """Hydra's parser calls itself for every bracket."""
    if max(accumulate((sign in "[{(") - (sign in "]})") for sign in token)) > DEEPEST:
        raise ValueError(f"more than {DEEPEST} brackets inside each other")


def _unreadable(token: str, error: Exception) -> str:
    short = token if len(token) <= LONGEST else f"{token[:LONGEST]}…"
    if "=" not in token:
        return f"{short}: expected NAME=VALUE, as in seed=1"
    reason = next((line for line in str(error).splitlines() if not line.startswith("Error parsing")), "no value")
    return f"{short}: cannot be read ({reason}); quote special characters, as in {token.partition('=')[0]}='\"...\"'"


def _needs_multirun(override: Override) -> str:
    key = override.key_or_group
    return f"{override.input_line}: several values need -m (a job for each); for one list write {key}=[...]"


def _problems(override: Override, known: Groups) -> Iterator[str]:
    key = override.key_or_group
    if override.is_delete():
        return
    if key.startswith("hydra."):
        yield from unknown_hydra_keys(key)
    elif options := known.options(key):
        if override.is_force_add():
            yield f"{override.input_line}: {key} is a config group; choose an option with {key}=..."
        yield from _option_problems(override, options)
    elif "." not in key and ("/" in key or get_close_matches(key, known.names(), n=1, cutoff=0.75)):
        yield f"{key}: no such config group" + _hint(key, known.names())


def _misplaced(override: Override, conf: Path, root: str, staged: bool) -> Iterator[str]:
    """A choice in a group that another program has; Hydra would say that it is not in the defaults list."""
    key = override.key_or_group
    chooses = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    if root in PROGRAMS and chooses and key not in groups_taken(conf, root):
        for name, program in PROGRAMS.items():
            if key in groups_taken(conf, name):
                yield f"{key}: belongs to {program}" + (f"; write stage.NAME.{override.input_line}" if staged else "")


def _undeletable(override: Override, conf: Path, root: str) -> Iterator[str]:
    """A run cannot do without the keys of the primary config."""
    key = override.key_or_group
    if override.is_delete() and key.partition(".")[0] in {"hydra", *primary_config(conf, root)} - {"defaults"}:
        yield f"~{key}: cannot be left out; set it instead, as in {key}=VALUE"


def _option_problems(override: Override, options: Sequence[str]) -> Iterator[str]:
    if override.value() is None:
        yield f"{override.input_line}: no such option; to use none write ~{override.key_or_group}"
    for name in (name if len(name) <= LONGEST else f"{name[:LONGEST]}…" for name in _chosen(override)):
        if name in options:
            continue
        if name in EXTRAS and override.key_or_group == "hydra/launcher":
            yield f'{override.input_line}: not installed; run `pip install "postrain[{EXTRAS[name]}]"`'
            continue
        if name in UNAVAILABLE and override.key_or_group == "hydra/launcher":
            there = ", ".join(options)
            yield f"{override.input_line}: its package needs Hydra 1.4, postrain uses 1.3; available: {there}"
            continue
        of_a_user = override.key_or_group == SWEEP and name.endswith(".yaml")
        if not of_a_user:
            instead = suggest_option(override.key_or_group, name)
            yield f"{override.key_or_group}={name}: no such option" + (
                f"; {instead}" if instead else _hint(name, options)
            )


def _chosen(override: Override) -> Iterator[str]:
    """The option names of a group override: one, a list of them, or those of a sweep; none for null and for glob(*)."""
    value = override.value()
    if override.is_choice_sweep():
        value = None if isinstance(value, Glob) else list(override.sweep_iterator())
    if value is not None:
        for name in value if isinstance(value, list) else [value]:
            yield name.text if isinstance(name, QuotedString) else str(name)


def _hint(name: str, choices: Sequence[str]) -> str:
    near = get_close_matches(name, choices, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{meant} (available: {', '.join(choices)})" if meant else f"; available: {', '.join(choices)}"


def _forced(override: Override, known: Groups) -> str:
    """`key=v` and `+key=v` as `++key=v`; choices of a group, deletions and Hydra's own keys as they were."""
    key, line = override.key_or_group, override.input_line or ""
    as_it_was = override.is_delete() or key.startswith("hydra.") or known.options(key) or override.package
    return line if as_it_was else "++" + line.lstrip("+")
