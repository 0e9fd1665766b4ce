"""The figures of an evaluation: bars per model, distributions over items, and score against test-time cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from postrain.formatting import short
from postrain.jsonl import Record, records_of
from postrain.report import palette
from postrain.report.charts import Bars, DataPoint, Group, Series, points
from postrain.report.evaluations import EvalModel, Point, central
from postrain.report.generation_page import CUT, FINISHED
from postrain.report.palette import SERIES, color
from postrain.report.pictures import LARGE, Entry, Picture

MOST_BARS, MOST_METRICS = 14, 9


def compared(models: Sequence[EvalModel]) -> list[tuple[str, Bars]]:
    """Bars of the central metric of each task, one per model; for a single model all of its shares."""
    if len(models) == 1:
        shares = [
            (short(f"{task} {name}"), known.point, 0)
            for task, found in models[0].tasks.items()
            for name, known in found.metrics.items()
            if known.interval is not None and 0 <= known.interval[0] <= known.interval[1] <= 1
        ]
        return [("shares and scores between 0 and 1", shares[:MOST_BARS])] if shares else []
    metrics = {task: found.metrics for one in models for task, found in one.tasks.items()}
    made: list[tuple[str, Bars]] = []
    for task in [name for name, of in metrics.items() if of][:MOST_METRICS]:
        metric = central(metrics[task])
        rows = [
            (one.name, one.tasks[task].metrics[metric].point, index)
            for index, one in enumerate(models)
            if task in one.tasks and metric in one.tasks[task].metrics
        ]
        made += [(short(f"{task} {metric}"), rows)] if len(rows) > 1 else []
    return made


def perplexities(models: Sequence[EvalModel]) -> list[tuple[str, list[Group]]]:
    """For each task with a perplexity per item: the values of each model."""
    found = []
    for task in dict.fromkeys(task for one in models for task in one.records):
        groups = [
            (one.name, SERIES[index % len(SERIES)], values)
            for index, one in enumerate(models)
            if (values := one.values(task, "perplexity"))
        ]
        found += [(task, groups)] if groups else []
    return found


def lengths(models: Sequence[EvalModel]) -> list[Group]:
    """Tokens per completion by model; for a single model by whether the completion is finished."""
    found: list[Group] = []
    for index, one in enumerate(models):
        task = next((name for name in ("lengths", "queries") if one.values(name, "tokens")), "")
        # A record of a query holds all of its paraphrases.
        records = [part for record in one.records.get(task, ()) for part in paraphrases(record) or [record]]
        known = [(float(record["tokens"]), record.get("finished")) for record in records if _whole(record)]
        if len(models) == 1:
            found = [
                (FINISHED, palette.FINISHED, [tokens for tokens, ended in known if ended is True]),
                (CUT, palette.CUT, [tokens for tokens, ended in known if ended is False]),
            ]
        elif task:
            found.append((one.name, SERIES[index % len(SERIES)], [tokens for tokens, _ in known]))
    return [group for group in found if group[2]]


def _whole(record: Record) -> bool:
    tokens = record.get("tokens")
    return isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < 1e9


def paraphrases(record: Record) -> list[Record]:
    """The paraphrases of a query, each with its answer."""
    return records_of(record.get("phrasings", record.get("wordings")))


def scaling(methods: Mapping[str, Sequence[Point]]) -> list[Picture]:
    """Score against sampled tokens and against time."""
    legend = [Entry(color(index), method) for index, method in enumerate(methods)]
    found = []
    for title, cost in (("Score against sampled tokens", "tokens"), ("Score against time", "seconds")):
        series: list[Series] = []
        for index, (method, curve) in enumerate(methods.items()):
            data_points = [
                DataPoint(spent, point.score.value, None, point.score.interval)
                for point in curve
                if (spent := getattr(point, cost)) is not None and spent > 0
            ]
            series += [(method, index, data_points)] if data_points else []
        if series:
            draw = points(series, x=f"mean {cost} per prompt", y="score", log_x=True)
            found.append(Picture(title, "with 95 % intervals", draw, legend, size=LARGE))
    return found
