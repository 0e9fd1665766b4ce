"""The flags of the command line, and Hydra's errors as one line each.

Hydra answers a mistake with advice on Hydra, often a traceback, and exit code 1. Here each becomes a ConfigError that
names the argument. Leaves out the overrides (overrides.py).
"""

from __future__ import annotations

import argparse
import os
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_type_hints

# Private: the flags of hydra.main and its frame in a traceback have no public name.
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from postrain import __version__
from postrain.config.foreign_keys import suggest_key
from postrain.config.schema import schema_of
from postrain.config.static_schema import static_target
from postrain.errors import ConfigError, Parser
from postrain.suggestions import suggestion

SHELLS = ("bash", "fish", "zsh")
COMPLETION = [f"{verb}={shell}" for verb in ("install", "uninstall", "query") for shell in SHELLS]
SECTIONS = (
    ("postrain.methods.group_relative.GroupRelative", "method."),
    ("postrain.methods.policy_gradient.PolicyGradient", "method."),
    ("postrain.training.config.TrainConfig", ""),
)
"""Classes whose keys are suggested for an unknown flag, and the prefix of these keys."""
# Beginnings of messages of Hydra and OmegaConf, and their meaning for an override.
MEANINGS = {
    "Cannot merge DictConfig with ListConfig": "expected a list, got a mapping",
    "ListConfig indices must be integers or slices": "expected the number of an item of a list",
    "invalid literal for int()": "expected the number of an item of a list",
    "Unexpected type for root": "expected a mapping or a list that contains this key",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses flags and overrides in any order; raises one ConfigError with all problems of the flags."""
    parser = Parser(parents=[get_args_parser()], add_help=False, conflict_handler="resolve")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--version", action="version", version=f"postrain {__version__}")
    arguments, unknown = parser.parse_known_intermixed_args(list(argv))
    # argparse also returns what follows an unknown flag: its value, and settings.
    problems = [*(_unknown(token) for token in unknown if token.startswith("-")), *_misused(arguments)]
    if problems:
        raise ConfigError("\n".join(problems))
    return arguments


def split_cfg_flags(argv: Sequence[str]) -> tuple[list[str], argparse.Namespace | None]:
    """Separates --cfg and its flags from the rest of the command line; the flags are None if no config is printed.

    --help with overrides prints the config that they compose, with a description of each key.
    """
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--package", "-p")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--help", "-h", action="store_true")
    flags, others = parser.parse_known_args(list(argv))
    if flags.help and any("=" in word for word in others):
        flags.cfg = "help"
    return (others, flags) if flags.cfg else (list(argv), None)


def _unknown(token: str) -> str:
    word = token.lstrip("-").partition("=")[0].replace("-", "_")
    hint = suggest_key(word, lambda key: True) or _similar_key(word)
    text = f"{token}: no such flag; settings are written KEY=VALUE without dashes, as in seed=1"
    return f"{text}; {hint}" if hint else text


def _similar_key(word: str) -> str:
    """The suggestion of a dotted key, a key of a run, or one of its method; empty without a similar one."""
    if "." in word:
        return f"did you mean {word}=...?"
    keys = {name: f"{section}{name}" for path, section in SECTIONS for name in schema_of(static_target(path)).keys}
    near = get_close_matches(word, keys, n=1, cutoff=0.75)
    return f"did you mean {keys[near[0]]}=...?" if near else ""


def _misused(arguments: argparse.Namespace) -> Iterator[str]:
    """Problems of flags that exclude or require each other."""
    exclusive = {"cfg": "--cfg", "info": "--info", "shell_completion": "-sc", "run": "--run"}
    given = [flag for name, flag in exclusive.items() if getattr(arguments, name)]
    if len(given) > 1:
        yield f"{' '.join(given)}: expected one of them"
    if len(given) == 1 and arguments.info in ("all", "config"):
        # Hydra's own composition has no default of a class and none of this package's checks.
        yield (
            f"--info {arguments.info}: expected defaults, defaults-tree, plugins or searchpath; for the config of a "
            "run write --cfg job"
        )
    if arguments.run and arguments.multirun:
        yield "--run --multirun: expected one of them"
    for flag in ("resolve", "package"):
        if getattr(arguments, flag) and not arguments.cfg:
            yield f"--{flag}: changes the output of --cfg; write --cfg job --{flag}"
    if arguments.experimental_rerun is not None:
        yield "--experimental-rerun: not supported; resume=FOLDER resumes a run, manifest.json has its command"
    if arguments.shell_completion and (len(arguments.overrides) != 1 or arguments.overrides[0] not in COMPLETION):
        yield f"-sc: expected install=SHELL, uninstall=SHELL or query=SHELL, with one of {', '.join(SHELLS)}"


@contextmanager
def full_hydra_errors() -> Iterator[None]:
    """Makes Hydra raise errors, which it would otherwise print before it ends the process."""
    name = "HYDRA_FULL_ERROR"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def unknown_hydra_keys(key: str) -> Iterator[str]:
    """Problems of a `hydra.` key. Hydra accepts any key with a `+`, so this compares it with Hydra's schema."""
    section: type = HydraConf
    path = "hydra"
    for part in key.split(".")[1:]:
        names = [field.name for field in fields(section)]
        if part not in names:
            hint = suggestion(part, names, f"known keys: {', '.join(names)}", prefix=f"{path}.")
            yield f"{key}: unknown key of Hydra{hint}"
            return
        section, path = get_type_hints(section)[part], f"{path}.{part}"
        if not is_dataclass(section):
            return


@contextmanager
def composition_errors() -> Iterator[None]:
    """Converts every exception that composing a config raises to a ConfigError."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise to_config_error(error) from None


def set_values(config: DictConfig, words: Sequence[str]) -> None:
    """Sets each `++key=value` in a composed config, as Hydra does; composing again would be slow."""
    for override in OverridesParser.create().parse_overrides(list(words)):
        word = (override.input_line or "").lstrip("+")
        if override.package is not None:
            what = f"Override ++{word} looks like a config group override, but config group"
            raise ConfigError(f"{word}: {what} '{override.key_or_group}' does not exist.")
        try:
            OmegaConf.update(config, override.key_or_group, override.value(), merge=True, force_add=True)
        except RecursionError as error:
            raise to_config_error(error) from None
        # OmegaConf raises built-in exceptions too, such as for a key below a list or a text.
        except Exception as error:
            raise ConfigError(f"{word}: {_meaning(str(error).splitlines())}") from None


def to_config_error(error: Exception) -> ConfigError:
    """An error of Hydra or OmegaConf as one line that begins with the override or key."""
    if isinstance(error, RecursionError):
        return ConfigError("a reference ${...} leads back to itself, or a value is nested too deeply")
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(f"{mark.name}, line {mark.line + 1}: {error.problem}; correct the YAML")
    lines = [line for each in (error, error.__cause__) if each is not None for line in str(each).splitlines()]
    first, *rest = lines or [type(error).__name__]
    if first.startswith("Error merging override"):
        word = first.removeprefix("Error merging override ").lstrip("+")
        return ConfigError(f"{word}: {_meaning(rest)}")
    if composition := _composition_problem(first, rest):
        return ConfigError(composition)
    if first.startswith("Could not delete from config. '"):
        key = first.split("'")[1]
        return ConfigError(f"~{key}: nothing to delete; it has its default or does not exist")
    key = next((line.split(":", 1)[1].strip() for line in rest if line.strip().startswith("full_key:")), _word(error))
    return ConfigError(f"{key}: {_meaning(lines)}" if key else _meaning(lines))


def _composition_problem(first: str, rest: Sequence[str]) -> str | None:
    """A mistake in the defaults list of a config file: an option that does not exist, or a missing package."""
    options = [line.strip() for line in rest if line.startswith("\t") and "provider=" not in line]
    if options and (found := re.search(r"Could not find '([^']+)/([^'/]+)'", first)):
        near = get_close_matches(found[2], options, n=1)
        hint = f"did you mean {near[0]}? (available: {', '.join(options)})" if near else f"use {', '.join(options)}"
        return f"{found[1]}={found[2]}: no such option, in the defaults of a config file; {hint}"
    if found := re.match(r"In '([^']+)': Could not override '([^'@]+)@", first):
        return f"{found[1]}.yaml: cannot override {found[2]}; add the first line `# @package _global_`"
    return None


def _word(error: Exception) -> str:
    """The override that failed: errors for a key below a list or a text do not contain it."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is ConfigLoaderImpl._apply_overrides_to_config.__code__:
            return str(frame.f_locals["override"].input_line).lstrip("+")
    return ""


def resolved(config: Any) -> dict[str, Any]:
    """A composed config as plain containers, its references resolved. Raises ConfigError if that fails."""
    try:
        plain: Any = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise to_config_error(error) from None
    return plain


def _meaning(lines: Sequence[str]) -> str:
    first = lines[0] if lines else "cannot be read"
    if "evaluation/measure" in first:
        first += "; evaluation/measure is now evaluation/task"
    return next((meaning for message, meaning in MEANINGS.items() if first.startswith(message)), first)
