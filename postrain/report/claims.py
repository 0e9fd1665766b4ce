"""The claims of a pipeline: reads them from result.json, and shows them on the console and on pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console

from postrain.formatting import console_table, figure, with_interval
from postrain.jsonl import read_json, records_of
from postrain.report import blocks
from postrain.report.evaluations import Number, as_number
from postrain.report.page import PAGE, link
from postrain.report.sweep_cells import JobResult
from postrain.report.values import finite, mapping, text_of

STYLES = {"reproduced": "done", "not here": "failed", "undecided": "unknown"}
"""The badge of each decision."""
COLUMNS, WORDS = ("verdict", "published gap", "gap", "reason"), ("verdict", "gap", "reason")
ABOUT = (
    "Each claim is an inequality of the metrics of stages. The gap is the side that is claimed to be larger minus the "
    "other one, paired by seed: mean with Student's t 95 % interval. Reproduced: the whole interval is above 0, or "
    "inside the tolerance. Not here: it is below 0, or outside. Undecided: it is on both sides."
)


@dataclass(frozen=True)
class ClaimResult:
    """The decision on a claim."""

    claim: str
    holds: str
    """The inequality."""
    published: float | None
    """The gap in the paper."""
    decision: str
    reason: str
    """Why it is not reproduced."""
    gaps: tuple[tuple[str, Number], ...]
    """Each neighbour of the inequality, with its mean gap."""

    @property
    def gap_text(self) -> str:
        """The gaps with their intervals."""
        return "; ".join(with_interval(gap.value, gap.low, gap.high) for _, gap in self.gaps)

    @property
    def published_text(self) -> str:
        """The published gap."""
        return "" if self.published is None else figure(self.published)


@dataclass(frozen=True)
class Quantity:
    """A metric of a stage."""

    name: str
    published: float | None
    seeds: Mapping[str, float]
    mean: Number | None


@dataclass(frozen=True)
class Claims:
    """The claims of a pipeline, decided."""

    reference: Mapping[str, str]
    """title, arxiv, where, model."""
    setup: str
    """What ran here."""
    seeds: tuple[str, ...]
    claims: tuple[ClaimResult, ...]
    quantities: tuple[Quantity, ...]

    @property
    def source(self) -> str:
        """Title, arXiv number, tables and figures."""
        number = f"arXiv {self.reference['arxiv']}" if self.reference.get("arxiv") else ""
        return ", ".join(filter(None, (self.reference.get("title"), number, self.reference.get("where"))))

    @property
    def differences(self) -> str:
        """What was trained there and here."""
        ends = (("Published", self.reference.get("model")), ("Here", self.setup))
        return " ".join(f"{where}: {what}." for where, what in ends if what)


def read_claims(result: Mapping[str, Any]) -> Claims | None:
    """The claims in a result.json; None without any."""
    found = mapping(result.get("claims"))
    claims = tuple(
        ClaimResult(
            text_of(one.get("claim")),
            text_of(one.get("holds")),
            finite(one.get("published")),
            decision if (decision := text_of(one.get("decision"))) in STYLES else "undecided",
            text_of(one.get("reason")),
            tuple(
                (text_of(each.get("comparison")), gap)
                for each in records_of(one.get("gaps"))
                if (gap := as_number(each))
            ),
        )
        for one in records_of(found.get("claims"))
    )
    quantities = tuple(
        Quantity(
            text_of(one.get("name")),
            finite(one.get("published")),
            {
                str(seed): known
                for seed, each in mapping(one.get("seeds")).items()
                if (known := finite(each)) is not None
            },
            as_number(one),
        )
        for one in records_of(found.get("quantities"))
    )
    if not claims:
        return None
    reference = {str(name): text_of(value) for name, value in mapping(found.get("reference")).items()}
    seeds = found.get("seeds")
    listed = tuple(map(str, seeds)) if isinstance(seeds, list) else ()
    return Claims(reference, text_of(found.get("setup")), listed, claims, quantities)


def counts(claims: Sequence[ClaimResult]) -> str:
    """17 of 24 claims reproduced, 3 not here, 4 undecided."""
    found = Counter(one.decision for one in claims)
    rest = "".join(f", {found[name]} {name}" for name in ("not here", "undecided") if found[name])
    return f"{found['reproduced']} of {len(claims)} claim{'s' if len(claims) > 1 else ''} reproduced{rest}"


def print_claims(found: Claims, console: Console) -> None:
    """Prints decisions, reasons and numbers."""
    rows = [[one.decision, one.claim, one.published_text, one.gap_text] for one in found.claims]
    best = [index for index, one in enumerate(found.claims) if one.decision == "reproduced"]
    console.print()
    console.print(f"{counts(found.claims)} over seeds {', '.join(found.seeds)}", style="bold")
    console.print(console_table(("verdict", "claim", "published", "gap [95 % interval]"), rows, best=best))
    for one in found.claims:
        if one.reason:
            console.print(f"{one.decision}: {one.claim}: {one.reason}", soft_wrap=True, markup=False)
    console.print()
    console.print(console_table(*_numbers(found)))
    for line in filter(None, (found.source, found.differences)):
        console.print(line, soft_wrap=True, markup=False)


def claims_table(found: Claims) -> blocks.Table:
    """A row for each claim: decision, published gap, gap, and why it is not reproduced."""
    rows = [(one.claim, _cells(one)) for one in found.claims]
    return blocks.Table(("claim", *COLUMNS), rows, about=ABOUT, words=WORDS)


def verdicts_table(found: Sequence[tuple[JobResult, Claims]], folder: Path) -> blocks.Table:
    """The claims of all pipelines of a sweep, with links to their reports; `folder` is that of the page."""
    rows = []
    for job, known in found:
        report = job.folder / PAGE
        name = blocks.anchor(job.label, link(report, folder)) if report.is_file() else job.label
        for one in known.claims:
            first = one is known.claims[0]
            title = known.reference.get("title", "") if first else ""
            rows.append((name if first else "", [blocks.Cell(one.claim, title, css="words"), *_cells(one)]))
    return blocks.Table(("pipeline", "claim", *COLUMNS), rows, about=ABOUT, words=("claim", *WORDS))


def _cells(one: ClaimResult) -> list[blocks.Cell]:
    return [
        blocks.Cell(decision_badge(one.decision), css="state"),
        blocks.Cell(one.published_text),
        blocks.Cell(one.gap_text or "–", one.holds, css="words"),
        blocks.Cell(one.reason, css="words"),
    ]


def verdict_rows(found: Sequence[tuple[JobResult, Claims]]) -> tuple[list[str], list[tuple[bool, list[str]]]]:
    """The same as texts; the first value of a row is whether the claim is reproduced."""
    rows = [
        (one.decision == "reproduced", [job.label, one.decision, one.claim, one.published_text, one.gap_text])
        for job, known in found
        for one in known.claims
    ]
    return ["pipeline", "verdict", "claim", "published", "gap [95 % interval]"], rows


def claims_of_jobs(jobs: Sequence[JobResult]) -> list[tuple[JobResult, Claims]]:
    """The claims of the finished pipelines of a sweep."""
    known = ((job, read_claims(read_json(job.folder / "result.json"))) for job in jobs if job.state == "done")
    return [(job, found) for job, found in known if found]


def verdict_sentences(found: Sequence[tuple[JobResult, Claims]]) -> list[str]:
    """The counts of all claims, then of each pipeline with the reasons of claims that are not reproduced."""
    lines = [f"{counts([one for _, known in found for one in known.claims])}, in {len(found)} pipelines."]
    for job, known in found:
        reasons = [f"{one.claim}: {one.decision}, {one.reason}." for one in known.claims if one.reason]
        lines.append(" ".join([f"{job.label}: {counts(known.claims)}.", *reasons]))
    return lines


def numbers_table(found: Claims) -> blocks.Table:
    """A row for each metric: published, by seed, and the mean with its interval."""
    columns, lines = _numbers(found)
    return blocks.Table(columns, [(name, [*map(blocks.Cell, cells)]) for name, *cells in lines])


def source_line(found: Claims) -> Markup:
    """The source, with a link to arXiv."""
    number = found.reference.get("arxiv", "")
    link = blocks.anchor("arXiv", f"https://arxiv.org/abs/{number}") if number else Markup()
    return blocks.line(found.source, link)


def decision_badge(decision: str) -> Markup:
    """A coloured decision."""
    return blocks.span(decision, f"badge {STYLES[decision]}")


def _numbers(found: Claims) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the metrics; without a column of published values if there are none."""
    published = any(one.published is not None for one in found.quantities)
    seeds = [f"seed {seed}" for seed in found.seeds]
    rows = [
        [
            one.name,
            *([] if not published else ["" if one.published is None else figure(one.published)]),
            *(figure(one.seeds[seed]) if seed in one.seeds else "–" for seed in found.seeds),
            "–" if one.mean is None else with_interval(one.mean.value, one.mean.low, one.mean.high),
        ]
        for one in found.quantities
    ]
    return ["metric", *(["published"] if published else []), *seeds, "mean [95 % interval]"], rows
