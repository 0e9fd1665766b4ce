"""The page of an evaluation, or of several: every number with its interval, distributions, curves, the answers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from postrain.formatting import figure, short
from postrain.report import evaluation_pictures as pictures
from postrain.report.charts import bars
from postrain.report.evaluation_data import Evaluation, Number, Point, Subject, read_evaluation
from postrain.report.page import Cell, Picture, estimate, flat, write_page
from postrain.report.panels import best_of
from postrain.report.pictures import color, write_png
from postrain.report.queries import by_category
from postrain.report.run_data import state_of
from postrain.report.samples import SHOWN, side_by_side

TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-(?=[0-9a-f])")
Histograms = Sequence[tuple[str, list[pictures.Group]]]
Table = tuple[list[str], list[tuple[str, list[Cell]]]]


def write_evaluation(path: Path, output: Path | None = None) -> Path:
    """Writes report.html and its pictures of an evaluation into its folder or into `output`.

    Raises ConfigError where they cannot be written.
    """
    return _write([read_evaluation(path)], output or path)


def write_comparison_of_evaluations(paths: Sequence[Path], folder: Path) -> Path:
    """The models of several evaluations on one page. Raises ConfigError where it cannot be written."""
    return _write([read_evaluation(path) for path in paths], folder)


def _write(found: Sequence[Evaluation], folder: Path) -> Path:
    subjects = together(found)
    names = list(dict.fromkeys(name for one in subjects for name in one.measures))
    differences = found[0].differences if len(found) == 1 else {}
    measured = [name for name in names if any(one.measures[name].metrics for one in subjects if name in one.measures)]
    compared, lengths = pictures.compared(subjects), pictures.lengths(subjects)
    perplexities = pictures.perplexities(subjects)
    groups = [(one.name, one.samples) for one in subjects if one.samples]
    page = write_page(
        folder,
        "evaluation.html",
        {
            "evaluations": found,
            "state": state_of(found[0].status) if len(found) == 1 else "",
            "subjects": [(one, color(index)) for index, one in enumerate(subjects)],
            "warnings": warnings(found, subjects),
            "bars": [pictures.compared_picture(*one, named=len(subjects) == 1) for one in compared],
            "measures": [(name, table(name, subjects, differences), _notes(name, subjects)) for name in measured],
            "unmeasured": [(name, _notes(name, subjects)) for name in names if name not in measured],
            "scaling": [one for subject in subjects for one in _scaling(subject, len(subjects) > 1)],
            "distributions": _distributions(perplexities, lengths),
            "queries": [(one.name, by_category(one.records.get("queries", ()))) for one in subjects],
            "shown": side_by_side(groups, least=min(2, len(groups)))[:SHOWN],
            "examples": _examples(names, subjects),
            "tables": [(name, flat(found[0].manifest.get(name))) for name in ("seeds", "hardware", "git", "versions")],
            "missing": [line for one in found for line in one.missing],
        },
    )
    _write_pngs(folder, compared, perplexities, lengths)
    return page


def _distributions(perplexities: Histograms, lengths: Sequence[pictures.Group]) -> list[Picture]:
    found = [pictures.distribution(f"Perplexity, {name}", "of each item", groups) for name, groups in perplexities]
    return found + ([pictures.distribution("Length", "tokens of each completion", lengths)] if lengths else [])


def _write_pngs(
    folder: Path,
    compared: Sequence[tuple[str, pictures.Bars]],
    perplexities: Histograms,
    lengths: Sequence[pictures.Group],
) -> None:
    if compared:
        drawn = [(name, bars(rows)) for name, rows in compared]
        write_png(folder / "model_comparison.png", "held-out, with 95 % intervals", drawn)
    if perplexities:
        drawn = [(name, pictures.drawn(groups)) for name, groups in perplexities]
        write_png(folder / "perplexity_distribution.png", "perplexity of each item", drawn)
    if lengths:
        write_png(folder / "response_lengths.png", "tokens of a completion", [("", pictures.drawn(lengths))])


def together(found: Sequence[Evaluation]) -> list[Subject]:
    """All models, each with a name of its own, and that without the time of its run where it can be spared."""
    all_of = [(evaluation, subject) for evaluation in found for subject in evaluation.subjects]
    names = [TIME.sub("", subject.name) for _, subject in all_of]
    return [
        replace(subject, name=name if names.count(name) == 1 else f"{subject.name}, {evaluation.path.name}")
        for name, (evaluation, subject) in zip(names, all_of, strict=True)
    ]


def warnings(found: Sequence[Evaluation], subjects: Sequence[Subject]) -> list[str]:
    """What a reader must know before anything else."""
    said = list(dict.fromkeys(note for one in found for note in one.notes))
    prints = {str(known) for one in found if (known := _fingerprint(one))}
    sources = {one.name: one.data for one in subjects if one.data}
    if len(set(sources.values())) > 1:
        told = "; ".join(f"{name}: {source}" for name, source in sources.items())
        said.insert(0, f"Not measured on the same data ({told}): the numbers are of different items.")
    elif len(prints) > 1:
        said.insert(0, "Not measured on the same rows: the fingerprints of the data differ.")
    if not subjects:
        said.append("No model was measured: there is nothing to show.")
    return said


def _fingerprint(one: Evaluation) -> Any:
    data = one.manifest.get("data")
    return data.get("fingerprint") if isinstance(data, dict) else None


def table(
    measure: str, subjects: Sequence[Subject], differences: Mapping[tuple[str, str], Mapping[str, Number]]
) -> Table:
    """A row for each metric, a column for each model, and for the difference of the first to each other one."""
    there = [one for one in subjects if measure in one.measures]
    metrics = _metrics(measure, there)
    gaps = {metric: differences.get((measure, metric), {}) for metric in metrics}
    others = list(dict.fromkeys(name for against in gaps.values() for name in against))
    rows = []
    for metric in metrics:
        known = {one.name: one.measures[measure].metrics.get(metric) for one in there}
        best = best_of(f"{measure}/{metric}", {name: found.value if found else None for name, found in known.items()})
        cells = [_cell(found, name in best) for name, found in known.items()]
        rows.append((short(metric), [*cells, *(_cell(gaps[metric].get(name), False) for name in others)]))
    return ["", *(one.name for one in there), *(f"difference to {TIME.sub('', name)}" for name in others)], rows


def _metrics(measure: str, subjects: Sequence[Subject]) -> list[str]:
    return list(dict.fromkeys(name for one in subjects for name in one.measures[measure].metrics))


def _cell(found: Number | None, best: bool) -> Cell:
    return estimate(found.value, found.low, found.high, found.n, best=best) if found else Cell("–")


def _notes(measure: str, subjects: Sequence[Subject]) -> list[str]:
    return list(
        dict.fromkeys(note for one in subjects if measure in one.measures for note in one.measures[measure].notes)
    )


def _scaling(subject: Subject, several: bool) -> list[tuple[str, list[Picture], Table]]:
    """For each measure with curves: its title, pictures, and the points as a table."""
    return [
        (
            f"{measure}, {subject.name}" if several else measure,
            pictures.scaling(dict(found.curves)),
            _points(found.curves),
        )
        for measure, found in subject.measures.items()
        if found.curves
    ]


def _points(curves: Mapping[str, Sequence[Point]]) -> Table:
    rows = []
    for way, there in curves.items():
        for point in there:
            costs = [Cell("–" if cost is None else figure(cost)) for cost in (point.tokens, point.seconds, point.kl)]
            name = way if way == point.label else f"{way}: {point.label}"
            rows.append((name, [_cell(point.score, False), *costs]))
    return ["way", "score", "tokens", "seconds", "KL to the sampler, nats"], rows


def _examples(names: Sequence[str], subjects: Sequence[Subject]) -> list[tuple[str, str]]:
    """The exact text of item 0 of each measure, said once where models were given the same."""
    found: dict[str, list[str]] = {}
    for name in names:
        for one in subjects:
            if name in one.measures and (text := one.measures[name].example):
                found.setdefault(text, []).append(name if len(subjects) == 1 else f"{name} of {one.name}")
    return [(", ".join(dict.fromkeys(who)), text) for text, who in found.items()]
