"""The page of a generation: accuracy, distributions of scores and lengths, and the completions of the first prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from postrain.report import blocks, palette
from postrain.report.charts import Group, distribution, histogram
from postrain.report.evaluations import shares
from postrain.report.folders import Generation, read_generation
from postrain.report.page import RESPONSES, Page, flat, reproduction, section, write_page
from postrain.report.palette import GOLD, POLICY
from postrain.report.pictures import Sheet
from postrain.report.run_page import LEAST_FOR_A_HISTOGRAM
from postrain.report.samples import MOST_PROMPTS, Answer, PromptSamples, Sample, responses
from postrain.report.values import LARGEST

MOST_ANSWERS = 4
FINISHED, CUT = "finished", "cut"


def write_generation(path: Path, output: Path | None = None, formats: Sequence[str] = ()) -> Path:
    """Writes report.html, response_lengths.png and sample_responses.json into the folder or into `output`.

    Raises ConfigError where they cannot be written.
    """
    folder, found = output or path, read_generation(path)
    groups, known = distributions(found.samples), shares(found)
    model = flat(found.manifest.get("model"))
    heading = blocks.line(model[0][1] if model else found.path.name, blocks.badge(found.state))
    first = f"The first prompts with their first {MOST_ANSWERS} completions, not the best ones. All of them: "
    table = blocks.Table(
        ("", "share"),
        [(name, [blocks.estimate(one.value, one.low, one.high, one.n)]) for name, one in known.items()],
        about="Below each share its 95 % interval over prompts.",
    )
    sections = (
        section("Accuracy", table),
        section(
            "Distributions",
            blocks.Pictures(
                [
                    distribution(name.capitalize(), f"{sum(len(group[2]) for group in of)} completions", of)
                    for name, of in groups.items()
                ]
            ),
        ),
        section(
            "Samples",
            blocks.about(f"{first}completions.jsonl."),
            blocks.Samples([_first_completions(prompt) for prompt in found.prompts[:MOST_PROMPTS]]),
        ),
        section("Reproduce this generation", *reproduction(found.manifest, found.path)),
    )
    header = (blocks.Facts(_facts(found)), blocks.end_reason(found.status.get("reason")))
    title = f"generation · {found.path.name}"
    lengths, label = groups.get("words"), "words per completion"
    page = Page(
        kind="generation",
        title=title,
        heading=heading,
        header=header,
        sections=sections,
        missing=found.missing,
        sheets=[Sheet("response_lengths", label, [("", histogram(lengths, label=label))])] if lengths else [],
        table=table,
        files={RESPONSES: responses([("model", found.samples[: 8 * MOST_PROMPTS])])} if found.prompts else {},
    )
    return write_page(folder, page, formats)


def _facts(found: Generation) -> list[tuple[str, str]]:
    rows = [("prompts", str(len(found.prompts))), ("completions", str(len(found.samples))), ("selected", found.kept())]
    rows += [("data", str(found.data.get("source") or "")), ("took", found.took)]
    return [(name, value) for name, value in rows if value]


def _first_completions(prompt: Sequence[Sample]) -> PromptSamples:
    """The first completions of a prompt."""
    answers = [
        Answer(f"completion {number}" + (" (cut)" if one.finished is False else ""), one.completion, one.scores)
        for number, one in enumerate(prompt[:MOST_ANSWERS], start=1)
    ]
    return PromptSamples(prompt[0].row, prompt[0].prompt, tuple(answers))


def distributions(samples: Sequence[Sample]) -> Mapping[str, list[Group]]:
    """Rewards, gold scores and lengths, where there are enough."""
    ended = {FINISHED: (palette.FINISHED, True), CUT: (palette.CUT, False)}
    values: Mapping[str, list[Group]] = {
        "reward": [("reward", POLICY, _scores(samples, "reward/total"))],
        "gold score": [("gold", GOLD, _scores(samples, "gold/total"))],
        "words": [
            (name, shade, [one.length for one in samples if (one.finished is not False) is whole])
            for name, (shade, whole) in ended.items()
        ],
    }
    found = {name: [group for group in groups if group[2]] for name, groups in values.items()}
    return {name: of for name, of in found.items() if sum(len(one[2]) for one in of) >= LEAST_FOR_A_HISTOGRAM}


def _scores(samples: Sequence[Sample], name: str) -> list[float]:
    return [one.scores[name] for one in samples if abs(one.scores.get(name, LARGEST)) < LARGEST]
