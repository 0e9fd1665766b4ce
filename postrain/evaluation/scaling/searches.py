"""What searches of several widths find, against best-of-n that is chosen by the same value and samples as many tokens.

A search pays for many beginnings that it drops; whether that buys more than whole completions would is the question, so
every search has its own n. Tokens are those the model under evaluation sampled; what the value reads shows in seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from postrain.evaluation.measures import Estimate, Finding, Point, Subject
from postrain.evaluation.scaling.bench import Bench, Graded, estimates, gains, likeliest, point
from postrain.evaluation.scaling.rules import best_of_n_kl, expected_best
from postrain.evaluation.scaling.search import Plan, Value, search, valued
from postrain.evaluation.scaling.tries import clocked, draw


@dataclass(frozen=True)
class Baseline:
    """Whole completions, chosen by the value of a search."""

    graded: Graded
    scores: tuple[tuple[float | None, ...], ...]
    seconds: float
    """That valuing all of them took."""

    def worths(self, n: int) -> list[float]:
        """Of the best of n, by prompt."""
        return [expected_best(*pair, n) for pair in zip(self.scores, self.graded.worths, strict=True)]

    def seconds_of(self, n: int) -> float:
        """For the best of n of a prompt."""
        tries = self.graded.tries
        return tries.share(n) + self.seconds * n / sum(map(len, tries.of))


def finding(
    subject: Subject, bench: Bench, value: Value, plans: Mapping[str, Plan], name: str, notes: Sequence[str] = ()
) -> Finding:
    """The searches by their labels, the widest last; `name` is what they are called together."""
    if subject.environment.stop:
        notes = (*notes, "a search asks no environment, so environment= was left out; best-of-n has it")
    found = {label: bench.grade(search(subject, bench.prompts, plan, value, name)) for label, plan in plans.items()}
    one = bench.grade(draw(subject, bench.prompts, 1, f"{name} baseline"))
    greedy = bench.greedy(subject, name)
    each = fmean(one.tries.tokens())
    same = {label: max(1, round(fmean(graded.tries.tokens()) / each)) for label, graded in found.items()}
    baseline = drawn(subject, bench, value, max(same.values()), f"{name} baseline")
    widest, most = list(found.values())[-1], list(same.values())[-1]
    columns = {
        "accuracy": widest.firsts(),
        "same_tokens": baseline.worths(most),
        "one_sample": baseline.worths(1),
        "greedy": greedy.firsts(),
    }
    columns["gain"] = gains(columns["accuracy"], columns["one_sample"])
    columns["gain_same_tokens"] = gains(columns["accuracy"], columns["same_tokens"])
    return Finding(
        metrics=estimates(columns) | {"tokens": Estimate.mean(widest.tries.tokens(), 0)},
        example=bench.example(subject),
        records=bench.records({**columns, **details(found)}),
        curves=curves(name, found, same, baseline, greedy),
        notes=(*bench.notes(baseline.graded, greedy, *found.values()), *notes),
    )


def drawn(subject: Subject, bench: Bench, value: Value, count: int, purpose: str) -> Baseline:
    """`count` whole completions of each prompt, valued as if a search had written them."""
    graded = bench.grade(draw(subject, bench.prompts, count, purpose))
    places = [place for place in range(len(bench.prompts)) for _ in range(count)]
    with clocked() as clock:
        scores = valued(value, places, [one.text for mine in graded.tries.of for one in mine])
    by_prompt = tuple(tuple(scores[at : at + count]) for at in range(0, len(scores), count))
    return Baseline(graded, by_prompt, clock.seconds)


def curves(
    name: str, found: Mapping[str, Graded], same: Mapping[str, int], baseline: Baseline, greedy: Graded
) -> dict[str, tuple[Point, ...]]:
    """The searches, best-of-n for as many tokens, and the likeliest completion."""
    each = fmean(baseline.graded.tries.tokens())
    searched = tuple(
        point(label, graded.firsts(), tokens=fmean(graded.tries.tokens()), seconds=graded.tries.share(1))
        for label, graded in found.items()
    )
    chosen = tuple(
        point(f"best of {n}", baseline.worths(n), tokens=n * each, seconds=baseline.seconds_of(n), kl=best_of_n_kl(n))
        for n in sorted({1, *same.values()})
    )
    return {name: searched, "best of n, same value": chosen, "greedy": (likeliest(greedy),)}


def details(found: Mapping[str, Graded]) -> dict[str, Sequence[object]]:
    """What else is kept of each prompt: what each search found, and whether it is right."""
    prompts = range(len(next(iter(found.values())).worths))
    return {
        "right": [{label: graded.worths[place][0] for label, graded in found.items()} for place in prompts],
        "completions": [
            {label: graded.tries.of[place][0].text for label, graded in found.items()} for place in prompts
        ],
    }
