"""Search over steps: sample several next steps of each partial completion (state), keep the best-valued states, repeat.

Beam search with a process reward model and tree of thoughts share this loop and differ in the value function. Each
level continues all states of all prompts in one batch. A search is compared with best-of-n by the same value function
with as many sampled tokens, so each search has its own n. Tokens of the value function are not counted; its time is.
Environments are not supported.

L tokens after the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from torch import Tensor

from postrain.data.kinds.prompt import Prompts
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.scaling.grader import GradedSamples, Grader, estimates, gains, greedy_point, point
from postrain.evaluation.scaling.rules import best_of_n_kl, expected_best_of_n, final_state, top_states
from postrain.evaluation.scaling.samples import Sample, Samples, draw, timed
from postrain.evaluation.task import EvalModel, EvalResult, ScalingPoint
from postrain.hardware.shares import map_items
from postrain.rollout.environment import SingleTurn
from postrain.seeds import derive_seed
from postrain.types import Completion, Stop

Value = Callable[[Sequence[int], Sequence[str]], Sequence[float | None]]
"""The value of states, given their prompt indices and texts in whole steps; None if unknown, which ranks last."""


@dataclass(frozen=True)
class Plan:
    """The settings of a search."""

    width: int
    """States kept at each level."""
    expansions: int
    """Continuations per state; the empty state gets width × expansions."""
    depth: int
    """Maximum number of steps."""
    ends: tuple[str, ...]
    """Texts that end a step."""


@dataclass(frozen=True)
class State:
    """A partial completion."""

    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """int64 [L]."""
    text: str = ""
    score: float = float("-inf")
    ended: bool = False
    """Whether the completion is finished."""


@dataclass(frozen=True)
class Branch:
    """A state to continue with one step."""

    prompt_index: int
    state: State
    key: int


def search(eval_model: EvalModel, prompts: Prompts, plan: Plan, value: Value, purpose: str) -> Samples:
    """The best completion found for each prompt, with the total of sampled tokens."""
    kept: list[list[State]] = [[State()] for _ in range(len(prompts))]
    spent = [0] * len(prompts)
    with timed() as clock:
        for level in range(plan.depth):
            branches = _branches(eval_model, kept, plan, level, purpose)
            if not branches:
                break
            made = _continued(eval_model, prompts, branches, plan.ends)
            scores = state_values(value, [branch.prompt_index for branch in branches], [state.text for state in made])
            found: list[list[State]] = [[state for state in mine if state.ended] for mine in kept]
            for branch, state, score in zip(branches, made, scores, strict=True):
                spent[branch.prompt_index] += len(state.ids) - len(branch.state.ids)
                found[branch.prompt_index].append(state if score is None else replace(state, score=score))
            kept = [_best(mine, plan.width) for mine in found]
    chosen = [mine[final_state([state.score for state in mine], [state.ended for state in mine])] for mine in kept]
    pairs = zip(chosen, spent, strict=True)
    return Samples(
        tuple((Sample(state.text, tokens, tuple(state.ids.tolist())),) for state, tokens in pairs), clock.seconds
    )


def state_values(value: Value, indices: Sequence[int], texts: Sequence[str]) -> list[float | None]:
    """The value of each text; duplicates of a prompt are valued once."""
    pairs = list(zip(indices, texts, strict=True))
    different = list(dict.fromkeys(pairs))
    found = map_items(len(different), lambda items: value(*zip(*(different[item] for item in items), strict=True)))
    known = dict(zip(different, found, strict=True))
    return [known[pair] for pair in pairs]


def _branches(
    eval_model: EvalModel, kept: Sequence[Sequence[State]], plan: Plan, level: int, purpose: str
) -> list[Branch]:
    """The continuations of all unfinished states, each with its own seed."""
    times = plan.expansions * (plan.width if level == 0 else 1)
    return [
        Branch(index, state, derive_seed(eval_model.seed, purpose, index, level, rank, number))
        for index, mine in enumerate(kept)
        for rank, state in enumerate(mine)
        for number in range(times if not state.ended else 0)
    ]


def _continued(
    eval_model: EvalModel, prompts: Prompts, branches: Sequence[Branch], ends: tuple[str, ...]
) -> list[State]:
    """Each state with one more step."""
    sampling, template = eval_model.engine.sampling, eval_model.template
    limits = tuple(sampling.max_new_tokens - len(branch.state.ids) for branch in branches)

    def sampled(items: range) -> list[Completion]:
        some = [branches[item] for item in items]
        return eval_model.engine.generate(
            eval_model.model,
            [torch.cat([prompts.ids[branch.prompt_index].cpu(), branch.state.ids]) for branch in some],
            seeds=[branch.key for branch in some],
            stop=Stop(
                template.stop_ids, (*sampling.stop, *ends), template.decode_all, tuple(limits[item] for item in items)
            ),
        )

    completions = map_items(len(branches), sampled)
    return [
        _longer(eval_model, branch.state, completion, limit)
        for branch, completion, limit in zip(branches, completions, limits, strict=True)
    ]


def _longer(eval_model: EvalModel, state: State, completion: Completion, limit: int) -> State:
    ids, template = torch.cat([state.ids, completion.ids]), eval_model.template
    over = (
        not completion.finished
        or len(completion.ids) >= limit
        or int(completion.ids[-1]) in template.stop_ids
        or any(text in template.decode_all(ids.tolist()) for text in eval_model.engine.sampling.stop)
    )
    return State(ids, template.decode(ids), ended=over)


def _best(states: Sequence[State], width: int) -> list[State]:
    """The best states without duplicates."""
    indices = top_states([state.score for state in states], [(state.text, state.ended) for state in states], width)
    return [states[index] for index in indices]


@dataclass(frozen=True)
class Baseline:
    """Whole completions, selected by the value function of a search."""

    graded: GradedSamples
    scores: tuple[tuple[float | None, ...], ...]
    seconds: float
    """Wall time of valuing all completions."""

    def expected_correctness(self, n: int) -> list[float]:
        """Expected correctness of the best of n, per prompt."""
        return [expected_best_of_n(*pair, n) for pair in zip(self.scores, self.graded.grades, strict=True)]

    def seconds_of(self, n: int) -> float:
        """Seconds per prompt for the best of n."""
        samples = self.graded.samples
        return samples.seconds_for(n) + self.seconds * n / sum(map(len, samples.by_prompt))


def compare_with_best_of_n(
    eval_model: EvalModel, grader: Grader, value: Value, plans: Mapping[str, Plan], name: str, notes: Sequence[str] = ()
) -> EvalResult:
    """Runs the searches, the widest last, and best-of-n at equal tokens; `name` labels the curve."""
    if not isinstance(eval_model.environment, SingleTurn):
        notes = (*notes, "search does not support environments, so it ran without environment=; best-of-n ran with it")
    found = {
        label: grader.grade(search(eval_model, grader.prompts, plan, value, name)) for label, plan in plans.items()
    }
    one = grader.grade(draw(eval_model, grader.prompts, 1, f"{name} baseline"))
    greedy = grader.greedy(eval_model, name)
    each = fmean(one.samples.tokens())
    same = {label: max(1, round(fmean(graded.samples.tokens()) / each)) for label, graded in found.items()}
    baseline = draw_baseline(eval_model, grader, value, max(same.values()), f"{name} baseline")
    widest, most = list(found.values())[-1], list(same.values())[-1]
    columns = {
        "accuracy": widest.firsts(),
        "same_tokens": baseline.expected_correctness(most),
        "one_sample": baseline.expected_correctness(1),
        "greedy": greedy.firsts(),
    }
    columns["gain"] = gains(columns["accuracy"], columns["one_sample"])
    columns["gain_same_tokens"] = gains(columns["accuracy"], columns["same_tokens"])
    return EvalResult(
        metrics=estimates(columns) | {"tokens": Estimate.mean(widest.samples.tokens(), 0)},
        example=grader.example(eval_model),
        records=grader.records({**columns, **search_details(found)}),
        curves=curves(name, found, same, baseline, greedy),
        notes=(*grader.notes(baseline.graded, greedy, *found.values()), *notes),
    )


def draw_baseline(eval_model: EvalModel, grader: Grader, value: Value, count: int, purpose: str) -> Baseline:
    """`count` whole completions of each prompt, scored by the value function."""
    graded = grader.grade(draw(eval_model, grader.prompts, count, purpose))
    with timed() as clock:
        scores = state_values(value, *graded.samples.flat())
    return Baseline(graded, graded.samples.grouped(scores), clock.seconds)


def curves(
    name: str, found: Mapping[str, GradedSamples], same: Mapping[str, int], baseline: Baseline, greedy: GradedSamples
) -> dict[str, tuple[ScalingPoint, ...]]:
    """Curves of the searches, of best-of-n at equal tokens, and of greedy decoding."""
    each = fmean(baseline.graded.samples.tokens())
    searched = tuple(
        point(label, graded.firsts(), tokens=fmean(graded.samples.tokens()), seconds=graded.samples.seconds_for(1))
        for label, graded in found.items()
    )
    chosen = tuple(
        point(
            f"best of {n}",
            baseline.expected_correctness(n),
            tokens=n * each,
            seconds=baseline.seconds_of(n),
            kl=best_of_n_kl(n),
        )
        for n in sorted({1, *same.values()})
    )
    return {name: searched, "best of n, same value": chosen, "greedy": (greedy_point(greedy),)}


def search_details(found: Mapping[str, GradedSamples]) -> dict[str, Sequence[object]]:
    """Further record fields: the result of each search and its correctness."""
    prompts = range(len(next(iter(found.values())).grades))
    return {
        "right": [{label: graded.grades[index][0] for label, graded in found.items()} for index in prompts],
        "completions": [
            {label: graded.samples.by_prompt[index][0].text for label, graded in found.items()} for index in prompts
        ],
    }
