"""The pictures of an evaluation: models beside each other, distributions over items, accuracy against its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from postrain.formatting import figure, short
from postrain.report.charts import Series, Spot, bars, histogram, points, spans_decades
from postrain.report.evaluation_data import Number, Point, Subject
from postrain.report.page import Picture, picture
from postrain.report.pictures import LARGE, SERIES, Draw, color, css
from postrain.report.queries import wordings

Bars = list[tuple[str, Spot, int]]
Group = tuple[str, str, list[float]]
MOST_BARS, MOST_METRICS = 14, 9
CENTRAL = ("total", "accuracy", "win_rate", "perplexity")
"""What a measure is about, where it has one of them; otherwise it is its first number."""
FINISHED, CUT = "came to an end", "was cut"


def compared(subjects: Sequence[Subject]) -> list[tuple[str, Bars]]:
    """Of several models the central number of each measure, a bar a model; of a single one all of its shares."""
    names = {measure: list(found.metrics) for one in subjects for measure, found in one.measures.items()}
    if len(subjects) == 1:
        shares = [
            (short(f"{measure} {name}"), _bar(known), 0)
            for measure, found in subjects[0].measures.items()
            for name, known in found.metrics.items()
            if known.low is not None and known.high is not None and 0 <= known.low <= known.high <= 1
        ]
        return [("shares and scores between 0 and 1", shares[:MOST_BARS])] if shares else []
    made = []
    for measure in [name for name, metrics in names.items() if metrics][:MOST_METRICS]:
        metric = next((name for name in CENTRAL if name in names[measure]), names[measure][0])
        rows = [
            (one.name, _bar(one.measures[measure].metrics[metric]), index)
            for index, one in enumerate(subjects)
            if measure in one.measures and metric in one.measures[measure].metrics
        ]
        made.append((short(f"{measure} {metric}"), rows))
    return [(name, rows) for name, rows in made if len(rows) > 1]


def _bar(found: Number) -> Spot:
    around = None if found.low is None or found.high is None else (found.low, found.high)
    return Spot(found.value, 0, around)


def compared_picture(name: str, rows: Bars, *, named: bool) -> Picture:
    """For the page; names are left out where a legend tells the colours."""
    size = (5.0 if named else 3.6, 0.5 + 0.28 * len(rows))
    return picture(name.capitalize(), "", bars(rows, named=named), size=size)


def perplexities(subjects: Sequence[Subject]) -> list[tuple[str, list[Group]]]:
    """For each measure that keeps a perplexity an item: the values of each model."""
    measures = dict.fromkeys(measure for one in subjects for measure in one.records)
    found = []
    for measure in measures:
        groups = [
            (one.name, SERIES[index % len(SERIES)], values)
            for index, one in enumerate(subjects)
            if (values := one.values(measure, "perplexity"))
        ]
        found += [(measure, groups)] if groups else []
    return found


def lengths(subjects: Sequence[Subject]) -> list[Group]:
    """Tokens of completions by model; of a single model by whether they came to an end."""
    found = []
    for index, one in enumerate(subjects):
        measure = next((name for name in ("lengths", "queries") if one.values(name, "tokens")), None)
        # A record of a query holds all of its wordings.
        records = [part for record in one.records.get(measure or "", ()) for part in wordings(record) or [record]]
        if len(subjects) == 1:
            for name, shade, ended in ((FINISHED, SERIES[2], True), (CUT, SERIES[1], False)):
                kept = [float(r["tokens"]) for r in records if r.get("finished") is ended and _whole(r.get("tokens"))]
                found += [(name, shade, kept)] if kept else []
        elif measure is not None:
            values = [float(r["tokens"]) for r in records if _whole(r.get("tokens"))]
            found += [(one.name, SERIES[index % len(SERIES)], values)] if values else []
    return found


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1e9


def distribution(title: str, about: str, groups: Sequence[Group]) -> Picture:
    """A histogram with the mean and the median of each group."""
    legend = [
        (css(shade), name, f"mean {figure(fmean(values))}, median {figure(median(values))}")
        for name, shade, values in groups
    ]
    return picture(title, about, drawn(groups), legend, size=(3.6, 1.7))


def drawn(groups: Sequence[Group]) -> Draw:
    """On a logarithmic axis where the values span decades."""
    return histogram(groups, log_x=spans_decades([value for _, _, values in groups for value in values]))


def scaling(ways: Mapping[str, Sequence[Point]]) -> list[Picture]:
    """Accuracy against the tokens and against the seconds that it took."""
    legend = tuple((color(index), way, "") for index, way in enumerate(ways))
    found = []
    for title, cost in (("Score against sampled tokens", "tokens"), ("Score against time", "seconds")):
        series: list[Series] = []
        for index, (way, there) in enumerate(ways.items()):
            spots = [
                Spot(spent, point.score.value, None, _around(point.score))
                for point in there
                if (spent := getattr(point, cost)) is not None and spent > 0
            ]
            series += [(way, index, spots)] if spots else []
        if series:
            draw = points(series, x=f"{cost} for a prompt, mean", y="score", log_x=True)
            found.append(picture(title, "with 95 % intervals", draw, legend, size=LARGE))
    return found


def _around(found: Number) -> tuple[float, float] | None:
    return None if found.low is None or found.high is None else (found.low, found.high)
