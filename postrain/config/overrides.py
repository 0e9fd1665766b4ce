"""Checks the command line before Hydra reads it: grammar, group options and `hydra.` keys, all problems in one error.

Hydra stops at the first unknown key and does not check keys with `+`. Therefore every `key=value` is passed as
`++key=value`, which Hydra always accepts, and check.py checks the composed config. Leaves out problems that only the
composed config shows.
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
from postrain.config.bare_words import is_bare, rejoined, remedy
from postrain.config.foreign_keys import suggest_option
from postrain.config.groups import SWEEP, Groups, groups_in_defaults, groups_of, primary_config
from postrain.config.paths import command
from postrain.config.schema import LONGEST
from postrain.errors import ConfigError
from postrain.formatting import shortened

# Keys of a study that define several jobs.
SWEEP_VALUES = ("sweep.grid", "sweep.jobs", "sweep.search", "sweep.seeds")
# Launchers in separate packages, and what pip installs for each.
LAUNCHER_EXTRAS = {
    "joblib": '"postrain[joblib]"',
    "submitit_slurm": '"postrain[slurm]"',
    "submitit_local": '"postrain[slurm]"',
    "ray": '"postrain[ray]" -c constraints-ray.txt',
}
MODEL_NAME_ALONE = (
    "model.name: only names the model in folders and reports; choose one with model=OPTION or model.path=PATH"
)
DRY_RUN = "--dry-run"
REQUIRED_GROUPS = {
    "method": "every run has one; choose an option, as in method=ppo",
    "model": "every run has one; choose an option, as in model=nano",
    "data": "every run has one; choose an option, or a file: data=jsonl data.path=FILE",
    "evaluation": "choose an option, as in evaluation=quick; in training, evaluation.completions=0 measures no "
    "completions, and evaluation.every=1000000 evaluates only before and after",
    "dialect": "leave out dialect= for the method's own loss",
    SWEEP: "leave out sweep= for a single run",
}
"""Groups that every config needs, and what to write in place of their deletion or null."""
MAX_BRACKET_DEPTH = 20
"""The deepest nesting of brackets that a value may have."""
# Command of each primary config.
PROGRAMS = {"config": command("train")} | {name: command(name) for name in ("generate", "evaluate", "stress")}


@dataclass(frozen=True)
class ParsedCommandLine:
    """A parsed command line, without the program's name."""

    arguments: list[str]
    """Arguments passed to Hydra; flags come last."""
    sweep: tuple[str, ...] | None
    """Overrides for the sweep itself: sweep=NAME, sweep.KEY=VALUE, lists of values; None for a single run."""
    dry_run: bool = False
    """Whether --dry-run measures the run instead of starting it."""


def prepare(argv: Sequence[str], conf: Path, config_name: str = "config") -> ParsedCommandLine:
    """Parses a command line for Hydra and the sweep. Raises one ConfigError with all problems."""
    arguments = parse(argv)
    if arguments.shell_completion:
        return ParsedCommandLine(list(argv), None)
    flags = [token for token in argv if token not in (*arguments.overrides, DRY_RUN)]
    root, extra = arguments.config_name or config_name, arguments.config_dir
    overrides = _checked(arguments.overrides, conf, root=root, extra=extra, multirun=arguments.multirun)
    known = groups_of(conf, extra)
    words = [(_forced(override, known), _is_swept(override)) for override in overrides]
    single = not arguments.multirun and not any(override.key_or_group == SWEEP for override in overrides)
    if arguments.dry_run and (not single or config_name != "config"):
        raise ConfigError(f"{DRY_RUN}: measures a single training run; leave out -m, sweep= and other commands")
    if single:
        return ParsedCommandLine([word for word, _ in words] + flags, None, arguments.dry_run)
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
    return override.is_sweep_override() or key == SWEEP or key.startswith(SWEEP_VALUES)


def job_overrides() -> list[str]:
    """The overrides of the running Hydra job as a user writes them: without ++, with unresolved references."""
    written: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)
    return [str(word).removeprefix("++") for word in written]


def _is_swept(override: Override) -> bool:
    return override.is_sweep_override() or override.key_or_group.partition(".")[0] == SWEEP


def forced(
    tokens: Sequence[str], conf: Path, *, root: str, extra: str | None = None, multirun: bool = False
) -> list[str]:
    """Overrides for Hydra: `++key=value`, except options of a group. Raises one ConfigError with all problems.

    `root` is the primary config, `extra` a further folder of config groups.
    """
    known = groups_of(conf, extra)
    overrides = _checked(tokens, conf, root=root, extra=extra, multirun=multirun)
    return [_forced(override, known) for override in overrides]


def last_choices(words: Sequence[str]) -> list[str]:
    """Forced overrides with only the last option of each group, followed by all values in order."""
    choices = {_key(word): word for word in words if not word.startswith(("+", "~"))}
    return [*choices.values(), *(word for word in words if word.startswith(("+", "~")))]


def _key(word: str) -> str:
    return word.partition("=")[0]


def _checked(tokens: Sequence[str], conf: Path, *, root: str, extra: str | None, multirun: bool) -> list[Override]:
    """The parsed overrides. Raises one ConfigError with all problems."""
    known = groups_of(conf, extra)
    overrides: list[Override] = []
    whole, problems = rejoined(tokens, multirun=multirun)
    for token in whole:
        try:
            token = renamed.override(token)
            _refuse_depth(token)
            overrides += OverridesParser.create().parse_overrides([token])
        except ConfigError as error:
            problems.append(str(error))
        # ValueError: an integer of thousands of digits.
        except (HydraException, ValueError) as error:
            problems.append(_unreadable(token, error, known))
    if not multirun and not any(override.key_or_group == SWEEP for override in overrides):
        problems += [_needs_multirun(override) for override in overrides if override.is_sweep_override()]
    problems += [problem for override in overrides for problem in _problems(override, known)]
    problems += [problem for override in overrides for problem in _undeletable(override, conf, root)]
    keys = {override.key_or_group for override in overrides}
    if "model.name" in keys and not keys & {"model", "model.path"}:
        problems.append(MODEL_NAME_ALONE)
    staged = any(override.key_or_group == "pipeline" for override in overrides)
    problems += [problem for override in overrides for problem in _misplaced(override, conf, root, staged)]
    if problems:
        raise ConfigError("\n".join(problems))
    return overrides


def _refuse_depth(token: str) -> None:
    """Raises ValueError for deeply nested brackets: Hydra's parser is recursive."""
    if max(accumulate((sign in "[{(") - (sign in "]})") for sign in token)) > MAX_BRACKET_DEPTH:
        raise ValueError(f"more than {MAX_BRACKET_DEPTH} brackets inside each other")


def _unreadable(token: str, error: Exception, known: Groups) -> str:
    short = shortened(token, LONGEST)
    if is_bare(token):
        return f"{short}: {remedy(token, known)}"
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
    """A message for an option of a group that only another program has; Hydra's message names the defaults list."""
    key = override.key_or_group
    chooses = not (override.is_add() or override.is_force_add() or override.is_delete() or override.package)
    if root in PROGRAMS and chooses and key not in groups_in_defaults(conf, root):
        for name, program in PROGRAMS.items():
            if key in groups_in_defaults(conf, name):
                yield f"{key}: belongs to {program}" + (f"; write stage.NAME.{override.input_line}" if staged else "")


def _undeletable(override: Override, conf: Path, root: str) -> Iterator[str]:
    """A message for the deletion of a group or key of the primary config that every run needs."""
    key = override.key_or_group
    if override.is_delete() and key in REQUIRED_GROUPS and key in {SWEEP, *groups_in_defaults(conf, root)}:
        yield f"~{key}: cannot be deleted; {REQUIRED_GROUPS[key]}"
    if override.is_delete() and key.partition(".")[0] in {"hydra", *primary_config(conf, root)} - {"defaults"}:
        yield f"~{key}: cannot be deleted; set it instead, as in {key}=VALUE"


def _option_problems(override: Override, options: Sequence[str]) -> Iterator[str]:
    if override.value() is None:
        group = override.key_or_group
        none = f"to use none write {group}=none" if "none" in options else f"to use none write ~{group}"
        yield f"{override.input_line}: no such option; {REQUIRED_GROUPS.get(group, none)}"
    for name in (shortened(name, LONGEST) for name in _chosen(override)):
        if name in options:
            continue
        if name in LAUNCHER_EXTRAS and override.key_or_group == "hydra/launcher":
            yield f"{override.input_line}: not installed; run `pip install {LAUNCHER_EXTRAS[name]}`"
            continue
        is_study_file = override.key_or_group == SWEEP and name.endswith(".yaml")
        if not is_study_file:
            instead = suggest_option(override.key_or_group, name)
            yield f"{override.key_or_group}={name}: no such option" + (
                f"; {instead}"
                if instead
                else _hint(name, options) + _no_own_options(override.key_or_group, name, options)
            )


def _no_own_options(group: str, name: str, options: Sequence[str]) -> str:
    """Where an own option is looked for, unless that folder exists or the name looks misspelt; else empty."""
    folder = Path(SWEEP if group == SWEEP else "conf")
    if folder.is_dir() or group.startswith("hydra/") or get_close_matches(name.lower(), options, n=1, cutoff=0.75):
        return ""
    return (
        f"; own options are read from ./{folder if group == SWEEP else folder / group} (there is none in {Path.cwd()})"
    )


def _chosen(override: Override) -> Iterator[str]:
    """The option names of a group override: one, a list, or those of a sweep; empty for null and glob(*)."""
    value = override.value()
    if override.is_choice_sweep():
        value = None if isinstance(value, Glob) else list(override.sweep_iterator())
    if value is not None:
        for name in value if isinstance(value, list) else [value]:
            yield name.text if isinstance(name, QuotedString) else str(name)


def _hint(name: str, choices: Sequence[str]) -> str:
    near = get_close_matches(name.lower(), choices, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{meant} (available: {', '.join(choices)})" if meant else f"; available: {', '.join(choices)}"


def _forced(override: Override, known: Groups) -> str:
    """`key=v` and `+key=v` as `++key=v`; options of a group, deletions and Hydra's keys unchanged."""
    key, line = override.key_or_group, override.input_line or ""
    unchanged = override.is_delete() or key.startswith("hydra.") or known.options(key) or override.package
    return line if unchanged else "++" + line.lstrip("+")
