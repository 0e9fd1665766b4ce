"""The tree of runs that fork=RUN@UPDATE connects: a line for each run, with its update, changes and deciding metric."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from postrain.formatting import figure
from postrain.jsonl import number, read_json
from postrain.report import blocks
from postrain.report.page import Section, section
from postrain.report.values import text_of
from postrain.runs.folder import RunFolder

MOST = 100
"""Runs in a tree; also ends a chain of folders that name each other."""


def fork_section(path: Path) -> Section | None:
    """The tree around a run; None if it is not a fork and no run beside it is forked from it."""
    first = ancestors(path)[0]
    if (tree := lines(first, path, children(first, path))) and len(tree) > 1:
        about = blocks.about("Each line: the update at which a run left the one above it, its changes, its result.")
        return section("Forks", about, blocks.code("\n".join(tree), ""))
    return None


def ancestors(path: Path) -> list[Path]:
    """The run that the run in `path` was forked from, and so on, oldest first; the last one is the run itself."""
    found = [path.resolve()]
    while (parent := parent_of(found[0])) is not None and parent not in found and len(found) < MOST:
        found.insert(0, parent)
    return found


def parent_of(path: Path) -> Path | None:
    """The run that a run was forked from; None if it was not."""
    known = text_of(read_json(RunFolder(path).fork).get("run"))
    return Path(known) if known else None


def children(*beside: Path) -> dict[Path, list[Path]]:
    """The forks of each run, in the order of their updates, among the runs in the same trees of folders as `beside`."""
    files = {
        file.resolve()
        for path in beside
        for depth, above in (("*", 0), ("*/*/*", 2))
        if len(path.parents) > above
        for file in path.parents[above].glob(f"{depth}/{RunFolder(path).fork.name}")
    }
    found: dict[Path, list[Path]] = {}
    for path in sorted((file.parent for file in files), key=lambda path: (update_of_fork(path), path.name))[:MOST]:
        if (parent := parent_of(path)) is not None:
            found.setdefault(parent, []).append(path)
    return found


def update_of_fork(path: Path) -> int:
    """The update at which a run left its parent."""
    return int(number(read_json(RunFolder(path).fork).get("update")) or 0)


def lines(run: Path, marked: Path, known: dict[Path, list[Path]]) -> list[str]:
    """The run and its forks below it, indented; an arrow marks one of them."""
    return list(_lines(run, marked.resolve(), known, "", "", MOST))


def _lines(
    run: Path, marked: Path, known: dict[Path, list[Path]], before: str, below: str, depth: int
) -> Iterator[str]:
    yield before + " ".join([*_words(run), *(["← this run"] if run == marked else [])])
    forks: Sequence[Path] = known.get(run, ()) if depth else ()
    for index, fork in enumerate(forks, 1):
        last = index == len(forks)
        yield from _lines(
            fork, marked, known, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "), depth - 1
        )


def _words(run: Path) -> Iterator[str]:
    """The text of a run's line."""
    about = read_json(RunFolder(run).fork)
    if about:
        yield f"@{update_of_fork(run)}"
    yield run.name if run.is_dir() else f"{run.name} (deleted)"
    changes = about.get("changes")
    if isinstance(changes, list):
        yield "; ".join(map(str, changes)) or "no change"
    result = read_json(RunFolder(run).result)
    metric, value = text_of(result.get("metric")), number(result.get("objective"))
    if metric and value is not None:
        yield f"· {metric} {figure(value)}"
