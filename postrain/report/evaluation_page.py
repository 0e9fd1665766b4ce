"""The page of one or several evaluations: metrics with intervals, distributions, test-time scaling and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from markupsafe import Markup

from postrain.formatting import figure, short
from postrain.jsonl import Record
from postrain.report import blocks
from postrain.report.charts import Group, bar_picture, bars, distribution, wide_histogram
from postrain.report.evaluation_pictures import compared, lengths, paraphrases, perplexities, scaling
from postrain.report.evaluations import TIME, EvalModel, Evaluation, Number, Point, findings, read_evaluation
from postrain.report.page import Page, Section, machine, reproduction, section, write_page
from postrain.report.palette import color
from postrain.report.panels import best_of
from postrain.report.pictures import Picture, Sheet
from postrain.report.samples import MOST_PROMPTS, side_by_side
from postrain.report.values import text_of

MOST_FINDINGS = 3
MOST_ANSWERS = 40
"""Answers listed per category of queries; queries.jsonl has all."""
METRICS_ABOUT = "Below each value its 95 % interval and the number of items."
DIFFERENCES_ABOUT = (
    " The best of each row is marked. Differences are the first model minus the other, on the same items; one whose "
    "interval excludes 0 is significant."
)
PERPLEXITY, LENGTHS = "perplexity per item", "tokens per completion"
Differences = Mapping[tuple[str, str], Mapping[str, Number]]
Table = tuple[list[str], list[tuple[str, list[blocks.Cell]]]]


def write_evaluation(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html and its figures of an evaluation into its folder or into `output`.

    Raises ConfigError where they cannot be written.
    """
    return _write([read_evaluation(path)], output or path, formats)


def write_comparison_of_evaluations(paths: Sequence[Path], folder: Path, formats: Sequence[str] = ()) -> Path:
    """The models of several evaluations on one page. Raises ConfigError where it cannot be written."""
    return _write([read_evaluation(path) for path in paths], folder, formats)


def _write(found: Sequence[Evaluation], folder: Path, formats: Sequence[str]) -> Path:
    models = named_models(found)
    one = len(models) == 1
    heading = models[0].name if one else blocks.line(f"{len(models)} models", blocks.span("evaluated", "muted"))
    bars_of, sizes, spread = compared(models), lengths(models), perplexities(models)
    samples = [(model.name, model.samples) for model in models if model.samples]
    differences = found[0].differences if len(found) == 1 else {}
    stated = findings(models, differences)
    page = Page(
        kind="evaluation",
        title=" · ".join(["evaluation", *(model.name for model in models)]),
        heading=blocks.line(heading, blocks.badge(found[0].state if len(found) == 1 else "")),
        header=(
            *(blocks.end_reason(each.status.get("reason")) for each in found),
            *(blocks.note(text, tone="warn") for text in warnings(found, models)),
        ),
        sections=(
            section("", blocks.Group([blocks.Text(text) for text in stated[:MOST_FINDINGS]], "card verdict")),
            section(
                "",
                blocks.Items([_member(model, index) for index, model in enumerate(models)], "runs"),
                blocks.Pictures([bar_picture(name.capitalize(), rows, named=one) for name, rows in bars_of], large=one),
            ),
            _metrics(models, differences),
            section("Test-time scaling", *(each for model in models for each in _scaling(model, not one))),
            section("Distributions", blocks.Pictures(_distributions(spread, sizes))),
            section("Hand-written queries", *(each for model in models for each in _queries(model, not one))),
            section(
                "Samples" if one else "The same prompts",
                blocks.about(
                    "The first prompts of the held-out data, not the best ones. All samples: sample_responses.json."
                ),
                blocks.Samples(side_by_side(samples, least=min(2, len(samples)))[:MOST_PROMPTS]),
            ),
            _model_inputs(models),
            _unmeasured(models),
            section(
                "Reproduce this evaluation",
                *(block for each in found for block in reproduction(each.manifest, each.path)),
                machine(found[0].manifest),
            ),
        ),
        missing=[text for each in found for text in each.missing],
        sheets=(
            Sheet("model_comparison", "held-out, with 95 % intervals", [(name, bars(rows)) for name, rows in bars_of]),
            Sheet("perplexity_distribution", PERPLEXITY, [(name, wide_histogram(of, name)) for name, of in spread]),
            Sheet("response_lengths", LENGTHS, [("", wide_histogram(sizes, LENGTHS))] if sizes else []),
        ),
        table=long_table(models, differences),
    )
    return write_page(folder, page, formats)


def _member(model: EvalModel, index: int) -> Markup:
    data = blocks.span(f"on {model.data}", "muted") if model.data else ""
    name = Markup().join((blocks.dot(color(index)), model.name))
    return blocks.line(name, data, blocks.span(model.path, "path muted"))


def named_models(found: Sequence[Evaluation]) -> list[EvalModel]:
    """All models with unique names, without the start time of a run unless two names would be equal."""
    all_of = [(evaluation, model) for evaluation in found for model in evaluation.models]
    names = [TIME.sub("", model.name) for _, model in all_of]
    return [
        replace(model, name=name if names.count(name) == 1 else f"{model.name}, {evaluation.path.name}")
        for name, (evaluation, model) in zip(names, all_of, strict=True)
    ]


def warnings(found: Sequence[Evaluation], models: Sequence[EvalModel]) -> list[str]:
    """Warnings at the top of the page."""
    messages = list(dict.fromkeys(note for one in found for note in one.notes))
    fingerprints = {str(known) for one in found if (known := one.data.get("fingerprint"))}
    sources = {one.name: one.data for one in models if one.data}
    if len(set(sources.values())) > 1:
        each = "; ".join(f"{name}: {source}" for name, source in sources.items())
        messages.insert(0, f"Not measured on the same data ({each}): the metrics are of different items.")
    elif len(fingerprints) > 1:
        messages.insert(0, "Not measured on the same rows: the fingerprints of the data differ.")
    if not models:
        messages.append("No model was measured: there is nothing to show.")
    return messages


def _tasks(models: Sequence[EvalModel]) -> list[str]:
    return list(dict.fromkeys(name for one in models for name in one.tasks))


def _metrics(models: Sequence[EvalModel], differences: Differences) -> Section | None:
    """A card of metrics for each task."""
    cards = [
        blocks.card(short(name), blocks.Table(*rows, card=False), *map(blocks.about, _notes(name, models)))
        for name in _tasks(models)
        if (rows := table(name, models, differences))[1]
    ]
    several = len(models) > 1
    return section(
        "Metrics",
        blocks.about(METRICS_ABOUT + (DIFFERENCES_ABOUT if several else "")),
        blocks.Group(cards, "stack" if several else "grid large"),
    )


def table(task: str, models: Sequence[EvalModel], differences: Differences) -> Table:
    """A row for each metric, a column for each model, and for the difference of the first to each other one."""
    present = [one for one in models if task in one.tasks]
    metrics = list(dict.fromkeys(name for one in present for name in one.tasks[task].metrics))
    gaps = {metric: differences.get((task, metric), {}) for metric in metrics}
    others = list(dict.fromkeys(name for against in gaps.values() for name in against))
    rows = []
    for metric in metrics:
        known = {one.name: one.tasks[task].metrics.get(metric) for one in present}
        best = best_of(f"{task}/{metric}", {name: found.value if found else None for name, found in known.items()})
        cells = [_cell(found, name in best) for name, found in known.items()]
        rows.append((short(metric), [*cells, *(_cell(gaps[metric].get(name)) for name in others)]))
    return ["", *(one.name for one in present), *(f"difference to {TIME.sub('', name)}" for name in others)], rows


def long_table(models: Sequence[EvalModel], differences: Differences) -> blocks.Table:
    """The tables of all tasks as one; columns of differences that a task lacks are empty."""
    found = {task: table(task, models, differences) for task in _tasks(models)}
    columns = list(dict.fromkeys(name for names, _ in found.values() for name in names[1:]))
    rows = []
    for task, (names, lines) in found.items():
        for metric, cells in lines:
            known = dict(zip(names[1:], cells, strict=True))
            rows.append((short(f"{task} {metric}"), [known.get(name, blocks.Cell("–")) for name in columns]))
    return blocks.Table(("metric", *columns), rows)


def _cell(found: Number | None, best: bool = False) -> blocks.Cell:
    return blocks.estimate(found.value, found.low, found.high, found.n, best=best) if found else blocks.Cell("–")


def _notes(task: str, models: Sequence[EvalModel]) -> list[str]:
    return list(dict.fromkeys(note for one in models if task in one.tasks for note in one.tasks[task].notes))


def _distributions(spread: Sequence[tuple[str, Sequence[Group]]], sizes: Sequence[Group]) -> list[Picture]:
    found = [distribution(f"Perplexity, {name}", "per item", groups, median=True) for name, groups in spread]
    return found + ([distribution("Length", "tokens per completion", sizes, median=True)] if sizes else [])


def _scaling(model: EvalModel, several: bool) -> list[blocks.Block]:
    """For each task with curves: its title, figures, and the points as a table."""
    found: list[blocks.Block] = []
    for task, one in model.tasks.items():
        if one.curves:
            title = short(f"{task}, {model.name}" if several else task)
            found += [
                blocks.Text(title, "task", "h3"),
                blocks.Pictures(scaling(one.curves), large=True),
                blocks.details("table of the points, with KL", blocks.Table(*_points(one.curves))),
            ]
    return found


def _points(curves: Mapping[str, Sequence[Point]]) -> Table:
    rows = []
    for method, present in curves.items():
        for point in present:
            costs = [
                blocks.Cell("–" if cost is None else figure(cost)) for cost in (point.tokens, point.seconds, point.kl)
            ]
            name = method if method == point.label else f"{method}: {point.label}"
            rows.append((name, [_cell(point.score), *costs]))
    return ["method", "score", "tokens", "seconds", "KL(policy‖sampler) [nats]"], rows


def _queries(model: EvalModel, several: bool) -> list[blocks.Block]:
    """The hand-written queries by category: the number of correct answers, and each answer with its verdict."""
    found: list[blocks.Block] = []
    for name, answered in by_category(model.records.get("queries", ())).items():
        correct = sum(one.get("right") is True for one in answered)
        more = f"The first {MOST_ANSWERS}; all of them: queries.jsonl." if len(answered) > MOST_ANSWERS else ""
        cards = [_answer(one) for one in answered[:MOST_ANSWERS]]
        title = f"{name}: {correct} of {len(answered)} correct"
        found.append(blocks.details(title, *cards, blocks.about(more), css="card"))
    return [blocks.Text(model.name, "task", "h3"), *found] if several and found else found


def _answer(one: Record) -> blocks.Group:
    correct = one.get("right") is True
    chip = blocks.span("correct" if correct else "wrong", f"chip {'up' if correct else 'down'}")
    label = blocks.line(text_of(one.get("row")), chip, text_of(one.get("why")))
    answer = one["response"].strip() or "(empty)"
    lines = (blocks.Text(label, "tag", "span"), blocks.Text(one["prompt"], "text muted"), blocks.Text(answer, "text"))
    return blocks.Group(lines, "query")


def by_category(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Each paraphrase of a query with its answer, by category, in file order."""
    found: dict[str, list[Record]] = {}
    for record in records:
        category = (text_of(record.get("category")) or "other").replace("_", " ")
        for one in paraphrases(record):
            if isinstance(one.get("prompt"), str) and isinstance(one.get("response"), str):
                found.setdefault(category, []).append({**one, "row": record.get("row")})
    return found


def _model_inputs(models: Sequence[EvalModel]) -> Section | None:
    """The exact input of item 0 of each task, once for models with the same input."""
    found: dict[str, list[str]] = {}
    for name in _tasks(models):
        for one in models:
            if name in one.tasks and (text := one.tasks[name].example):
                found.setdefault(text, []).append(name if len(models) == 1 else f"{name} of {one.name}")
    return section(
        "Exact model inputs",
        blocks.about("Item 0 of each task, with its template and special tokens."),
        *(blocks.details(short(", ".join(dict.fromkeys(who))), blocks.code(text)) for text, who in found.items()),
    )


def _unmeasured(models: Sequence[EvalModel]) -> Section | None:
    names = [n for n in _tasks(models) if not any(one.tasks[n].metrics for one in models if n in one.tasks)]
    rows = [(short(name), "; ".join(_notes(name, models)) or "no value") for name in names]
    lines = [Markup("{}: {}").format(blocks.bold(name), why) for name, why in rows]
    return section("Not measured", blocks.Items(lines))
