"""Search over steps: write a step in several ways, keep the most promising beginnings, go on from them.

One loop serves beam search by a process reward model and the tree of thoughts; they differ in who values a beginning.
All beginnings of all prompts are continued in one batch a level. Leaves out environments: a beginning is the model's
own text.

L tokens after the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from postrain.data.kinds.prompt import Prompts
from postrain.evaluation.measures import Subject
from postrain.evaluation.scaling.rules import beams, final
from postrain.evaluation.scaling.tries import Tries, Try, clocked
from postrain.seeds import derive_seed
from postrain.types import Completion, Stop

Value = Callable[[Sequence[int], Sequence[str]], Sequence[float | None]]
"""How promising beginnings are, given the places of their prompts and what is written so far, in whole steps; None
where that cannot be told, which is worse than anything."""


@dataclass(frozen=True)
class Plan:
    """The shape of a search."""

    width: int
    """Beginnings that are kept at each level."""
    expansions: int
    """Ways in which each of them is continued; the empty one as often as all together."""
    depth: int
    """Steps at most."""
    ends: tuple[str, ...]
    """Texts that end a step."""


@dataclass(frozen=True)
class State:
    """A beginning."""

    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """int64 [L]."""
    text: str = ""
    score: float = float("-inf")
    ended: bool = False
    """True where nothing more is to be written."""


@dataclass(frozen=True)
class Branch:
    """A beginning that is to be continued once more."""

    place: int
    """Of its prompt."""
    state: State
    key: int


def search(subject: Subject, prompts: Prompts, plan: Plan, value: Value, purpose: str) -> Tries:
    """The best completion that each search finds, with all tokens that it sampled."""
    kept: list[list[State]] = [[State()] for _ in range(len(prompts))]
    spent = [0] * len(prompts)
    with clocked() as clock:
        for level in range(plan.depth):
            branches = _branches(subject, kept, plan, level, purpose)
            if not branches:
                break
            made = _continued(subject, prompts, branches, plan.ends)
            scores = valued(value, [branch.place for branch in branches], [state.text for state in made])
            found: list[list[State]] = [[state for state in mine if state.ended] for mine in kept]
            for branch, state, score in zip(branches, made, scores, strict=True):
                spent[branch.place] += len(state.ids) - len(branch.state.ids)
                found[branch.place].append(state if score is None else replace(state, score=score))
            kept = [_best(mine, plan.width) for mine in found]
    chosen = [mine[final([state.score for state in mine], [state.ended for state in mine])] for mine in kept]
    pairs = zip(chosen, spent, strict=True)
    return Tries(tuple((Try(state.text, tokens, tuple(state.ids.tolist())),) for state, tokens in pairs), clock.seconds)


def valued(value: Value, places: Sequence[int], texts: Sequence[str]) -> list[float | None]:
    """The value of each text, equal ones of a prompt valued once: samples repeat each other, and models read slowly."""
    pairs = list(zip(places, texts, strict=True))
    different = list(dict.fromkeys(pairs))
    known = dict(zip(different, value(*zip(*different, strict=True)), strict=True))
    return [known[pair] for pair in pairs]


def _branches(subject: Subject, kept: Sequence[Sequence[State]], plan: Plan, level: int, purpose: str) -> list[Branch]:
    """Every open beginning, as often as it is continued, each with a seed of its own."""
    times = plan.expansions * (plan.width if level == 0 else 1)
    return [
        Branch(place, state, derive_seed(subject.seed, purpose, place, level, rank, number))
        for place, mine in enumerate(kept)
        for rank, state in enumerate(mine)
        for number in range(times if not state.ended else 0)
    ]


def _continued(subject: Subject, prompts: Prompts, branches: Sequence[Branch], ends: tuple[str, ...]) -> list[State]:
    """Each beginning with one more step."""
    sampling, template = subject.engine.sampling, subject.template
    limits = tuple(sampling.max_new_tokens - len(branch.state.ids) for branch in branches)
    said = subject.engine.generate(
        subject.model,
        [torch.cat([prompts.ids[branch.place].cpu(), branch.state.ids]) for branch in branches],
        seeds=[branch.key for branch in branches],
        stop=Stop(template.stop_ids, (*sampling.stop, *ends), template.decode_all, limits),
    )
    return [
        _longer(subject, branch.state, completion, limit)
        for branch, completion, limit in zip(branches, said, limits, strict=True)
    ]


def _longer(subject: Subject, state: State, completion: Completion, limit: int) -> State:
    ids, template = torch.cat([state.ids, completion.ids]), subject.template
    over = (
        not completion.finished
        or len(completion.ids) >= limit
        or int(completion.ids[-1]) in template.stop_ids
        or any(text in template.decode_all(ids.tolist()) for text in subject.engine.sampling.stop)
    )
    return State(ids, template.decode(ids), ended=over)


def _best(states: Sequence[State], width: int) -> list[State]:
    """The beginnings that are kept; of those with the same text, ended or not, one."""
    places = beams([state.score for state in states], [(state.text, state.ended) for state in states], width)
    return [states[place] for place in places]
