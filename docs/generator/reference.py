"""Directives about config keys, options, commands and metrics, read off signatures, docstrings and declarations."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from docs.generator.tables import code, escaped, sentence, table
from postrain.cli.commands import COMMANDS
from postrain.cli.help import groups, keys_of
from postrain.cli.main import root_of
from postrain.config.annotations import describe
from postrain.config.paths import CONF
from postrain.config.reference import (
    Entry,
    as_override_value,
    entries,
    field_docs,
    option,
    option_entries,
    options,
)
from postrain.config.schema import TARGET, load_target
from postrain.config.tree import fill_defaults, instantiate
from postrain.methods.base import Method
from postrain.metrics import ANY, POSITIVE, SHARE, Metric, declarations, declared

Logged = Callable[[str], Iterable[str]]
"""The names of the metrics that a method logs."""

RANGES = {ANY: "", SHARE: "0 … 1", POSITIVE: "≥ 0"}
NANO = 989_952
"""Parameters of the bundled model."""
TIMING = ("perf/*", "time", "update")


def method_class(name: str) -> Any:
    """The class of `method=name`."""
    return load_target(option("method", CONF / "method" / f"{name}.yaml")["method"][TARGET])


def entry_rows(found: Iterable[Entry]) -> Iterable[tuple[str, ...]]:
    """Table rows of keys: key, default, meaning, type."""
    for entry in found:
        value, kind = as_override_value(entry.value), describe(entry.key.annotation)
        value = "" if entry.value is None and "null" not in kind else value
        yield code(entry.path), code(value), escaped(entry.description), escaped(kind)


KEYS = ("key", "default", "meaning", "type")


def facts(name: str) -> str:
    """What `method=name` learns from and starts with."""
    target = method_class(name)
    rows = [("Command", code(f"python train.py method={name}")), ("Class", code(f"postrain.{target.__name__}"))]
    rows += [(group.capitalize(), code(f"{group}={chosen}")) for group, chosen in defaults(name).items()]
    rows += [
        (
            "Needs a reward",
            "yes, or a preference" if target.accepts_preferences else "yes" if target.needs_reward else "no",
        ),
        ("Headline metrics", ", ".join(map(metric_link, target.headline))),
    ]
    return table(("", ""), rows)


def defaults(name: str) -> dict[str, str]:
    """The options of other groups that `method=name` chooses, of its bases too."""
    text = (CONF / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    found = dict(re.findall(r"- override /(\w+): (\S+)", text))
    bases = [base for base in re.findall(r"^  - (\w+)$", text, re.MULTILINE) if base != "_self_"]
    return {**{group: chosen for base in bases for group, chosen in defaults(base).items()}, **found}


def learning_rates(_: str) -> str:
    """The default learning rates of every method at some sizes."""
    sizes = {"135M": 135_000_000, "1B": 10**9, "8B": 8 * 10**9}

    def row(name: str) -> tuple[str, ...]:
        node, adapter = option("method", CONF / "method" / f"{name}.yaml")["method"], name == "lora_sft"
        rates = instantiate(node).learning_rates()
        found = [f"{rates.for_model(size, adapter=adapter):g}" for size in sizes.values()]
        nano = rates.for_model(NANO, adapter=adapter)
        target = f"{rates.kl_share:g} × loss" if rates.kl_share else f"{rates.kl:g}"
        return code(f"method={name}"), f"{nano:g}", *found, target

    return table(("", "nano", *sizes, "KL target of auto [nats/token]"), map(row, options("method")))


def methods_table(_: str) -> str:
    """All methods with their pages."""
    rows = [
        (f"[`{name}`]({name}.md)", sentence(file), code(method_class(name).kind))
        for name, file in options("method").items()
    ]
    return table(("method", "what it is", "learns from"), rows)


def own_keys(target: type[Method]) -> set[str]:
    """The fields that the class and its bases below Method define."""
    return {name for base in inspect.getmro(target) if base not in inspect.getmro(Method) for name in annotated(base)}


def annotated(base: type) -> set[str]:
    """The names of the annotations of a class itself."""
    return set(inspect.get_annotations(base))


def keys(name: str) -> str:
    """The keys of `method=name`: its own, and those that every method has, folded."""
    found = list(option_entries("method", CONF / "method" / f"{name}.yaml"))
    own = own_keys(method_class(name))
    mine = [entry for entry in found if entry.path.split(".")[1] in own]
    rest = [entry for entry in found if entry.path.split(".")[1] not in own]
    shared = table(KEYS, entry_rows(rest)).replace("\n", "\n    ")
    return f'{table(KEYS, entry_rows(mine))}\n\n??? note "Keys that every method has"\n\n    {shared}'


def shared_keys(_: str) -> str:
    """The keys that every method has, with the defaults of the base class."""
    documented = field_docs(Method)
    found = [
        entry
        for entry in entries(fill_defaults({}, Method), Method, "method.")
        if entry.path.split(".")[1] in documented
    ]
    return table(KEYS, entry_rows(found))


def options_of(group: str) -> str:
    """The options of a group, a line each."""
    return table((group, "what it is"), [(code(name), sentence(file)) for name, file in options(group).items()])


def group(name: str) -> str:
    """The options of a group with all keys of each."""
    parts = [groups().get(name, ""), options_of(name)]
    for chosen, file in options(name).items():
        rows = list(entry_rows(keys_of(name, file)))
        set_elsewhere = sorted(set(option(name, file)) - {name, "defaults"})
        if rows:
            parts += [f"## {name}={chosen}", f"{sentence(file)}.", table(KEYS, rows)]
        if set_elsewhere and rows:
            parts += [f"It also sets keys of {', '.join(map(code, set_elsewhere))}."]
    return "\n\n".join(filter(None, parts))


def groups_table(_: str) -> str:
    """All config groups with their field_docs."""
    rows = [(f"[`{name}`]({name}.md)", escaped(text)) for name, text in groups().items() if name != "method"]
    return table(("group", "what it chooses"), [("[`method`](../../methods/index.md)", "The method."), *rows])


def program(primary: str) -> str:
    """The keys of a program that belong to no group."""
    root, known = root_of(primary), groups()
    found = entries(fill_defaults({}, root, without=[*known]), root)
    return table(KEYS, entry_rows(e for e in found if e.path not in known and e.path.split(".")[0] not in known))


def commands(_: str) -> str:
    """The sub-commands of `postrain`."""
    rows = [(code(f"postrain {name}"), *map(escaped, what.split(": ", 1))) for name, what in COMMANDS.items()]
    return table(("command", "what it does", "example"), ((a, b, code(c)) for a, b, c in rows))


def metric_link(name: str) -> str:
    """A metric's name with a link to its row in the reference, from a page one directory below the root."""
    found = declared(name)
    return f"[`{name}`](../reference/metrics.md#{anchor(found.name)})" if found else code(name)


def anchor(name: str) -> str:
    """The anchor of a metric's row."""
    return "metric-" + re.sub(r"[^a-z0-9]+", "-", name.replace("*", "any").lower()).strip("-")


def metric_row(name: str, one: Metric) -> tuple[str, ...]:
    """Table row of a metric: name, meaning, unit, better direction, range."""
    low, high = (f"{edge:g}".replace("inf", "∞") for edge in one.bounds)
    better = {"max": "higher", "min": "lower"}.get(one.direction or "", "")
    return name, escaped(one.description), one.unit, better, RANGES.get(one.bounds, f"{low} … {high}")


METRICS = ("metric", "meaning", "unit", "better", "range")


def metrics_of(method: str, logged: Logged) -> str:
    """What a run of `method` logs at updates and at evaluations."""
    names = sorted(name for name in logged(method) if not any(fnmatchcase(name, timing) for timing in TIMING))
    held_out = {name for name in names if name.startswith("eval/") or name.partition("/")[0] == "gold"}
    updates = set(names) - held_out
    only_held_out = {name for name in held_out if name.removeprefix("eval/") not in updates}
    every, evaluation = (
        table(METRICS, [metric_row(metric_link(name), one) for name in sorted(chosen) if (one := declared(name))])
        for chosen in (updates, only_held_out)
    )
    return (
        f"At every update:\n\n{every}\n\n"
        "An evaluation logs the metrics of the loss on held-out rows as `eval/NAME`, and these:\n\n"
        f"{evaluation}"
    )


def all_metrics(_: str) -> str:
    """All declared metrics."""
    found: Mapping[str, Metric] = {one.name: one for one in declarations()}
    rows = [metric_row(f'<span id="{anchor(name)}"></span>`{name}`', one) for name, one in sorted(found.items())]
    return table(METRICS, rows)


def public_names() -> Mapping[str, Any]:
    """What `postrain` exports, by name."""
    postrain = __import__("postrain")
    return {name: getattr(postrain, name) for name in postrain.__all__ if not name.startswith("__")}
