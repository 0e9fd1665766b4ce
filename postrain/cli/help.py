"""postrain help KEY: description, type, range and default of a key, and the options that have it or set it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from textwrap import indent
from typing import Any

from omegaconf import DictConfig, OmegaConf

from postrain.cli.commands import overview
from postrain.cli.main import root_of
from postrain.cli.user_conf import use_user_conf
from postrain.config import old_names, renamed
from postrain.config.annotations import describe, is_group
from postrain.config.groups import SWEEP, groups_of, listing
from postrain.config.overrides import DRY_RUN, PROGRAMS
from postrain.config.paths import CONF, LIST_METRICS, command, config_dirs, study_dirs
from postrain.config.reference import (
    Entry,
    as_override_value,
    entries,
    field_docs,
    json_schema,
    option,
    option_entries,
    options,
    supplied_arguments,
)
from postrain.config.schema import TARGET, schema_of
from postrain.config.tree import fill_defaults
from postrain.config.yaml_file import dump_yaml, load_yaml
from postrain.errors import ConfigError
from postrain.formatting import markdown_table
from postrain.jobs.launchers import Settings

LAUNCHER = "hydra/launcher"
EXPERIMENT = "experiment="
ABOUT_GROUP = {
    SWEEP: "A study: a question, the varied keys, the seeds and the deciding metric.",
    LAUNCHER: "The launcher that starts the jobs of a sweep.",
}
ABOUT_DRY_RUN = f"""\
{DRY_RUN}: reads and audits the data, prints the estimated memory by part, then measures an evaluation, two updates and
a checkpoint, which are undone, and prints time per update, total time and disk. Creates no run folder.
  {command("train")} method=sft model=smollm2 data.path=my.jsonl {DRY_RUN}"""
ABOUT = """\
usage: postrain help KEY|GROUP|OPTION   such as method.kl_coef, data.columns.prompt, rollout, grpo, method=grpo
       postrain help sweep=NAME         the question and settings of a study; sweep lists all studies
       postrain help experiment=NAME    the file of an experiment, such as recipe/smollm2_dpo
       postrain help hydra/launcher     the launchers of a sweep's jobs
       postrain help --json-schema      the keys of a training run as a JSON schema
       postrain help --markdown         the same as tables; an option lists what differs from its group
       postrain help --dry-run          the flag that measures a run instead of starting it
"""


def main(argv: Sequence[str]) -> int:
    """Runs one command line; returns the exit code."""
    words = list(argv[1:])
    use_user_conf()
    if not words or words[0] in ("-h", "--help"):
        print(f"{overview()}\n\n{ABOUT}", end="")
        return 0
    if words[0] == "--json-schema":
        print(json.dumps(json_schema(groups(), root_of("config")), indent=2, default=str))
        return 0
    if words[0] == "--markdown":
        print("\n".join(_markdown()))
        return 0
    code = 0
    for word in words:
        found = explain(word)
        code = code if found else 2
        print(found or f"error: {word}: {_suggestion(word)}", file=sys.stdout if found else sys.stderr)
    return code


def groups() -> dict[str, str]:
    """The groups of all programs, each with its description."""
    found: dict[str, str] = {}
    for root in map(root_of, PROGRAMS):
        docs = field_docs(root)
        names = [name for name in schema_of(root).keys if options(name)]
        found = {**{name: docs.get(name, "") for name in names}, **found}
    return found


def keys_of(group: str, file: Path) -> Iterator[Entry]:
    """Every key of an option that a config may set."""
    yield from option_entries(group, file, without=supplied_arguments(map(root_of, PROGRAMS)))


def explain(word: str) -> str | None:
    """The description of a key, a group or an option; None if it does not exist."""
    name = word.strip().lstrip("+")
    if (present := renamed.key(name)) != name:
        if name not in old_names.SYNONYMS:
            renamed.announce(name, present)
        name = present
    if name.lstrip("-") == DRY_RUN.lstrip("-"):
        return ABOUT_DRY_RUN
    if name in (SWEEP, LAUNCHER):
        return f"{name}: {ABOUT_GROUP[name]}\n{listing(CONF, name)}"
    if name.startswith((f"{SWEEP}=", f"{LAUNCHER}=")):
        return _study(name) if name.startswith(SWEEP) else _launcher(name)
    if name.startswith(EXPERIMENT):
        return _experiment(name)
    if options(name) and "." not in name:
        return "\n".join(filter(None, [f"{name}: {groups().get(name, '')}", listing(CONF, name)]))
    group, _, chosen = name.partition("=")
    places = [group] if chosen else [each for each in groups() if name in options(each)]
    choices = [(each, options(each)[chosen or name]) for each in places if (chosen or name) in options(each)]
    if choices:
        return "\n\n".join(f"{each}={file.stem}\n{describe_all(keys_of(each, file))}" for each, file in choices)
    return _key(name)


def _study(name: str) -> str | None:
    """The YAML of a study."""
    files = [folder / f"{name.partition('=')[2]}.yaml" for folder in study_dirs(CONF.parent)]
    file = next((file for file in files if file.is_file()), None)
    return None if file is None else f"{name}\n" + indent(dump_yaml(load_yaml(file)).rstrip(), "  ")


def _experiment(name: str) -> str | None:
    """The file of an experiment or recipe."""
    files = [conf / "experiment" / f"{name.removeprefix(EXPERIMENT)}.yaml" for conf in config_dirs()]
    file = next((file for file in files if file.is_file()), None)
    return None if file is None else f"{name}\n" + indent(file.read_text(encoding="utf-8").rstrip(), "  ")


def _launcher(name: str) -> str | None:
    """The settings of the local launcher; None for Hydra's launchers."""
    file = CONF / "hydra" / "launcher" / f"{name.partition('=')[2]}.yaml"
    if not file.is_file():
        return None
    settings = load_yaml(file)
    del settings[TARGET]
    return f"{name}\n{describe_all(entries(settings, Settings, 'hydra.launcher.'))}"


def _key(name: str) -> str | None:
    """The description of a dotted key, once for each meaning; None if it does not exist."""
    meanings: dict[tuple[str, str], dict[str, list[str]]] = {}
    for option_name, entry in known_keys():
        if entry.path == name:
            meaning = (describe(entry.key.annotation), entry.description)
            meanings.setdefault(meaning, {}).setdefault(as_override_value(entry.value), []).append(option_name)
    lines: list[str] = []
    for (kind, description), values in meanings.items():
        lines += [f"{name}: {kind}", f"  {description}"]
        for value, where in values.items():
            among = ", ".join(dict.fromkeys(filter(None, where)))
            lines.append(f"  default {value}" + (f" with {among}" if among else ""))
    if lines and (setters := list(_setters(name))):
        lines.append(f"  set by {', '.join(setters)}")
    return "\n".join(lines) or None


def known_keys() -> Iterator[tuple[str, Entry]]:
    """Every key, with the option that has it, or with the program if it belongs to no group."""
    for primary, program in PROGRAMS.items():
        root = root_of(primary)
        own = [name for name, key in schema_of(root).keys.items() if is_group(key.annotation)]
        whole = fill_defaults({}, root, without=own)
        yield from ((program, entry) for entry in entries(whole, root) if entry.path not in own)
    for group in groups():
        for name, file in options(group).items():
            try:
                yield from [(f"{group}={name}", entry) for entry in keys_of(group, file)]
            except ConfigError as error:
                # An invalid option of the user must not hide the keys of other options.
                print(f"note: {file}: {error}", file=sys.stderr)


def _setters(key: str) -> Iterator[str]:
    """The options of other groups that set a key, such as a method that sets rollout.max_new_tokens."""
    for group in (name for name in (*groups(), "experiment") if name != key.partition(".")[0]):
        for name, file in options(group).items():
            value: Any = option(group, file)
            for part in key.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
            if value is not None:
                yield f"{group}={name} ({as_override_value(value)})"


def _suggestion(word: str) -> str:
    known = dict.fromkeys(
        [
            *groups(),
            *(f"{SWEEP}={name}" for name in groups_of(CONF, None).options(SWEEP)),
            *(entry.path for _, entry in known_keys()),
        ]
    )
    near = get_close_matches(word, known, n=1)
    last = word.rpartition(".")[2]
    similar = near or [key for key in known if key.rpartition(".")[2] == last][:3]
    listing = LIST_METRICS if "/" in word else f"{command('train')} method=NAME --help"
    what = "metrics" if "/" in word else "keys"
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"{listing} lists all {what}"
    return f"no such key, group or option; {hint}"


def describe_all(found: Iterator[Entry]) -> str:
    """Keys with their descriptions, a paragraph for each group."""
    lines: list[str] = []
    last = ""
    for entry in found:
        group = entry.path.partition(".")[0]
        lines += [""] if last and group != last else []
        lines.append(f"  {entry.format()}")
        last = group
    return "\n".join(lines)


def describe_config(config: DictConfig, root: type) -> str:
    """Every key of a composed, complete config."""
    plain: Any = OmegaConf.to_container(config)
    return describe_all(entries(plain, root))


def _markdown() -> Iterator[str]:
    """A table of the keys that every option of a group has, with the most frequent default, and one of each option."""
    columns = ("key", "default", "type", "meaning")
    for group, description in groups().items():
        rows = {name: [_cells(entry) for entry in keys_of(group, file)] for name, file in options(group).items()}
        keys = Counter((path, *meaning) for found in rows.values() for path, _, *meaning in found)
        counts = Counter(row for found in rows.values() for row in found).most_common()
        usual = {(path, *meaning): (path, value, *meaning) for (path, value, *meaning), _ in reversed(counts)}
        shared = [usual[key] for key, count in keys.items() if count == len(rows) > 1]
        tables = {f"## {group}\n\n{description}": shared}
        tables |= {f"### {group}={name}": [row for row in found if row not in shared] for name, found in rows.items()}
        for title, table in tables.items():
            if table or title.startswith("## "):
                yield f"{title}\n" + (f"\n{markdown_table(columns, table)}" if table else "")


def _cells(entry: Entry) -> tuple[str, ...]:
    default = as_override_value(entry.value).replace("\n", "\\n")
    return entry.path, default, describe(entry.key.annotation), entry.description
