"""The page of a generation: how many completions were right, how long they are, what the first prompts got."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from postrain.config.masking import masked
from postrain.formatting import figure
from postrain.jsonl import JsonLines, Record, number, read_json
from postrain.report.charts import histogram
from postrain.report.efficiency import took_of
from postrain.report.evaluation_data import Number, as_number
from postrain.report.evaluation_pictures import CUT, FINISHED
from postrain.report.page import RESPONSES, Cell, Picture, estimate, flat, picture, write_json, write_page
from postrain.report.pictures import AFTER, SERIES, css, write_png
from postrain.report.run_data import LARGEST, Sample, sample_of, state_of
from postrain.report.samples import SHOWN, Answer, Shown, responses
from postrain.runs.status import Status

MOST_ANSWERS = 4
LEAST_FOR_A_HISTOGRAM = 12
SHARES = {"greedy": "right, greedy", "sampled": "right, sampled", "solved": "pass@n"}


@dataclass(frozen=True)
class Generation:
    """What a generation has written."""

    path: Path
    status: Record
    manifest: Record
    summary: Record
    prompts: tuple[tuple[Sample, ...], ...]
    """The completions of each prompt."""
    missing: tuple[str, ...]

    @property
    def samples(self) -> list[Sample]:
        """All completions."""
        return [sample for prompt in self.prompts for sample in prompt]

    def shares(self) -> dict[str, Number]:
        """How many were right, each way that was measured."""
        n = number(self.summary.get("prompts"))
        found = {told: as_number(self.summary.get(name)) for name, told in SHARES.items()}
        return {name: replace(one, n=int(n or 0) or None) for name, one in found.items() if one is not None}

    def kept(self) -> str:
        """Rows of the data file, of the completions there are."""
        kept = number(self.summary.get("kept"))
        return f"{kept:.0f} of {len(self.samples)}" if kept is not None and kept >= 0 else ""


def read_generation(path: Path) -> Generation:
    """The generation in a folder, finished or not."""
    records, damaged = JsonLines(path / "completions.jsonl").examine()
    summary = read_json(path / "summary.json")
    missing = [f"completions.jsonl: {damaged} damaged line{'s' if damaged > 1 else ''} left out"] if damaged else []
    missing += [] if summary else ["summary.json is missing or damaged: the generation did not come to its end"]
    return Generation(
        path=path.resolve(),
        status=Status(path / "status.json").current(),
        manifest=masked(read_json(path / "manifest.json")),
        summary=summary,
        prompts=tuple(answers for record in records if (answers := tuple(_answers(record)))),
        missing=tuple(missing),
    )


def _answers(record: Record) -> list[Sample]:
    texts = record.get("completions")
    found = []
    for place in range(len(texts) if isinstance(texts, list) else 0):
        one = {
            name: _at(record.get(key), place) for name, key in (("completion", "completions"), ("finished", "finished"))
        }
        totals = {
            name: {"total": _at(record.get(key), place)} for name, key in (("rewards", "rewards"), ("gold", "gold"))
        }
        sample = sample_of({**one, **totals, "row": record.get("row"), "prompt": record.get("prompt")})
        found += [sample] if sample is not None else []
    return found


def _at(values: Any, place: int) -> Any:
    return values[place] if isinstance(values, list) and place < len(values) else None


def write_generation(path: Path, output: Path | None = None) -> Path:
    """Writes report.html, response_lengths.png and sample_responses.json into the folder or into `output`.

    Raises ConfigError where they cannot be written.
    """
    folder, found = output or path, read_generation(path)
    pictures = _distributions(found.samples)
    page = write_page(
        folder,
        "generation.html",
        {
            "found": found,
            "state": state_of(found.status),
            "model": flat(found.manifest.get("model")),
            "facts": _facts(found),
            "shares": [(name, [_cell(one)]) for name, one in found.shares().items()],
            "pictures": [drawn for _, drawn, _ in pictures],
            "shown": [_shown(prompt) for prompt in found.prompts[:SHOWN]],
            "most": MOST_ANSWERS,
        },
    )
    if lengths := [groups for name, _, groups in pictures if name == "words"]:
        write_png(folder / "response_lengths.png", "words of a completion", [("", histogram(lengths[0]))])
    if found.prompts:
        write_json(folder / RESPONSES, responses([("model", found.samples[: 8 * SHOWN])]))
    return page


def _facts(found: Generation) -> list[tuple[str, str]]:
    rows = [("prompts", str(len(found.prompts))), ("completions", str(len(found.samples))), ("kept", found.kept())]
    data = found.manifest.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    rows += [("data", str(source or "")), ("took", took_of(found.status))]
    return [(name, value) for name, value in rows if value]


def _cell(found: Number) -> Cell:
    return estimate(found.value, found.low, found.high, found.n)


def _shown(prompt: Sequence[Sample]) -> Shown:
    """The first completions of a prompt."""
    answers = [
        Answer(f"completion {place}" + (" (cut)" if one.finished is False else ""), one.completion, one.scores)
        for place, one in enumerate(prompt[:MOST_ANSWERS], start=1)
    ]
    return Shown(prompt[0].row, prompt[0].prompt, tuple(answers))


def _distributions(samples: Sequence[Sample]) -> list[tuple[str, Picture, list[tuple[str, str, list[float]]]]]:
    """Rewards, gold scores and lengths, where there are enough."""
    values: Mapping[str, list[tuple[str, str, list[float]]]] = {
        "reward": [("reward", AFTER, _scores(samples, "reward/total"))],
        "gold score": [("gold", AFTER, _scores(samples, "gold/total"))],
        "words": [
            (FINISHED, SERIES[2], [one.length for one in samples if one.finished is not False]),
            (CUT, SERIES[1], [one.length for one in samples if one.finished is False]),
        ],
    }
    found = []
    for name, groups in values.items():
        there = [group for group in groups if group[2]]
        if sum(len(group[2]) for group in there) >= LEAST_FOR_A_HISTOGRAM:
            legend = [(css(shade), f"{who}, mean", figure(fmean(known))) for who, shade, known in there]
            about = f"{sum(len(group[2]) for group in there)} completions"
            drawn = picture(name.capitalize(), about, histogram(there), legend, size=(3.6, 1.7))
            found.append((name, drawn, there))
    return found


def _scores(samples: Sequence[Sample], name: str) -> list[float]:
    return [one.scores[name] for one in samples if abs(one.scores.get(name, LARGEST)) < LARGEST]
