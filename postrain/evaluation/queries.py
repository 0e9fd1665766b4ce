"""The suite of hand-written queries: everyday questions in several wordings, each with an answer that can be checked.

For any model: it is asked through the template that it learns with, without tools and without data. A query is the
unit of all that is counted, since its wordings are no independent samples. Leaves out what is asked and expected
(query_file.py, assets/queries.jsonl) and how an answer is judged (query_checks.py).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from itertools import combinations
from statistics import fmean
from typing import Annotated, Any

import torch

from postrain.config.schema import Confirm
from postrain.data.conversation import user
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.query_checks import Expect, Verdict, check_answer, has_extractable_answer, refuses
from postrain.evaluation.query_code import passes, signature, source
from postrain.evaluation.query_file import Query, read_queries
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.rollout.collect import collect
from postrain.seeds import derive_seed
from postrain.types import Count, NonNegative, Size

CODE_NOT_RUN = "code was parsed, not run; evaluation.tasks.queries.allow_execution=true runs it on this machine"
# What only several wordings of a query have.
CONSISTENCY_METRICS = ("consistency", "agreement", "agreement/paraphrase")


@dataclass(frozen=True)
class Asked:
    """One wording of a query, its answer and what is thought of it."""

    query: Query
    phrasing: int
    prompt: str
    """The exact text that the model was given."""
    response: str
    tokens: int
    finished: bool
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """What is kept of it."""
        kept = {name: getattr(self, name) for name in ("phrasing", "prompt", "response", "tokens", "finished")}
        return {**kept, **asdict(self.verdict)}


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Asks every query in its wordings; see conf/evaluation/task/queries.yaml."""

    temperature: NonNegative = 0.0
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: Size = 128
    """Tokens of an answer at most; fewer where the model's context holds no more."""
    categories: tuple[str, ...] | None = None
    """Some of factual, reasoning, instruction_following, creative, code and paraphrase; null is all."""
    phrasings: Count | None = None
    """Wordings of each query at most; null is all."""
    path: str | None = None
    """A .jsonl file in the format of postrain/assets/queries.jsonl; null is the bundled one."""
    allow_execution: Annotated[bool, Confirm("runs Python that the model writes")] = False
    """Run the Python functions of answers against their tests, on this machine, under limits; false only parses
    them."""

    def __post_init__(self) -> None:
        # A run of hours does not end in a misspelt category.
        self._queries()
        if self.allow_execution and sys.platform != "linux":
            raise ConfigError(
                "evaluation.tasks.queries.allow_execution=true: running code needs Linux, whose limits it relies "
                f"on; this is {sys.platform}; leave it false"
            )

    @torch.no_grad()
    def __call__(self, eval_model: EvalModel) -> EvalResult:
        """See `EvalTask`."""
        wordings = [(query, number) for query in self._queries() for number in range(self._wordings(query))]
        ids = [
            eval_model.template.encode_prompt(user(query.phrasings[number]), row=row)
            for row, (query, number) in enumerate(wordings)
        ]
        room = eval_model.context - max(map(len, ids))
        if room < 1:
            return EvalResult(metrics={}, notes=(f"the model's {eval_model.context} tokens of context hold no query",))
        asked = self._ask(eval_model, wordings, ids, min(room, self.max_new_tokens))
        records = tuple(record(group) for group in _grouped(asked).values())
        return EvalResult(
            metrics=metrics(records),
            example=asked[0].prompt,
            records=records,
            notes=tuple(self._notes(asked, room)),
        )

    def _queries(self) -> tuple[Query, ...]:
        queries = read_queries(self.path)
        known = list(dict.fromkeys(query.category for query in queries))
        for name in known if self.categories is None else self.categories:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                meant = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
                raise ConfigError(f"evaluation.tasks.queries.categories: no query is of the category {name}; {meant}")
        found = tuple(query for query in queries if self.categories is None or query.category in self.categories)
        if not found:
            raise ConfigError(
                f"evaluation.tasks.queries.categories: is empty; give some of {', '.join(known)}, or null for all"
            )
        return found

    def _wordings(self, query: Query) -> int:
        return min(len(query.phrasings), self.phrasings or len(query.phrasings))

    def _ask(
        self, eval_model: EvalModel, wordings: Sequence[tuple[Query, int]], ids: Sequence[torch.Tensor], tokens: int
    ) -> list[Asked]:
        engine = replace(eval_model.engine, temperature=self.temperature, max_new_tokens=tokens)  # type: ignore[type-var]
        prompts = Prompts(
            ids=tuple(ids),
            texts=tuple(query.phrasings[number] for query, number in wordings),
            columns=({},) * len(ids),
            row_ids=tuple(range(len(ids))),
        )
        # By the query's own name: what else is asked changes no answer.
        seeds = [derive_seed(eval_model.seed, f"queries {query.id}", number) for query, number in wordings]
        rollouts = collect(engine, eval_model.model, eval_model.template, prompts, seeds=seeds)
        lengths = [int(own.sum()) for own in rollouts.rows.supervised]
        said = zip(wordings, ids, rollouts.completions, lengths, rollouts.finished_B.tolist(), strict=True)
        return [
            Asked(
                query=query,
                phrasing=number,
                prompt=eval_model.template.decode_all(prompt.tolist()),
                response=response,
                tokens=length,
                finished=finished,
                verdict=check_answer(query.expect, response, _passes if self.allow_execution else None),
            )
            for (query, number), prompt, response, length, finished in said
        ]

    def _notes(self, asked: Sequence[Asked], room: int) -> Iterator[str]:
        if room < self.max_new_tokens:
            yield f"answers had {room} tokens, not {self.max_new_tokens}: more do not fit the model's context"
        if not self.allow_execution and any(one.query.expect.tests for one in asked):
            yield CODE_NOT_RUN


def record(asked: Sequence[Asked]) -> Mapping[str, Any]:
    """Of a query in its wordings: its share of each metric it has one of, and what was asked and said."""
    query, right = asked[0].query, fmean(one.verdict.right for one in asked)
    shares = {
        "accuracy": right,
        f"accuracy/{query.category}": right,
        "worst_phrasing": right == 1,
        **(_across(query, asked) if len(asked) > 1 else {}),
        "refusals_or_empty": fmean(refuses(one.response) for one in asked),
        "finished": fmean(one.finished for one in asked),
        "tokens": fmean(one.tokens for one in asked),
    }
    return {"row": query.id, "category": query.category, **shares, "wordings": [one.record() for one in asked]}


def metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """All that is counted; the observations are queries, whose wordings share one of them."""
    categories = dict.fromkeys(f"accuracy/{one['category']}" for one in records)
    shares = {
        name: Estimate.share([one[name] for one in records if name in one])
        for name in ("accuracy", *categories, "worst_phrasing", *CONSISTENCY_METRICS, "refusals_or_empty", "finished")
        if any(name in one for one in records)
    }
    return {**shares, "tokens": Estimate.mean([one["tokens"] for one in records], 0)}


def agreement(answers: Sequence[str]) -> float:
    """The share of pairs among at least two answers that are equal."""
    return fmean(one == other for one, other in combinations(answers, 2))


def _across(query: Query, asked: Sequence[Asked]) -> dict[str, float]:
    """What the wordings have in common: whether all are right or all wrong; and how often two of them get the same
    answer, right or wrong, where an answer can be read off."""
    found: dict[str, float] = {"consistency": len({one.verdict.right for one in asked}) == 1}
    if has_extractable_answer(query.expect):
        found["agreement"] = agreement([one.verdict.answer for one in asked])
        if query.category == "paraphrase":
            found["agreement/paraphrase"] = found["agreement"]
    return found


def _grouped(asked: Sequence[Asked]) -> Mapping[str, list[Asked]]:
    groups: dict[str, list[Asked]] = {}
    for one in asked:
        groups.setdefault(one.query.id, []).append(one)
    return groups


def _passes(text: str, expect: Expect) -> bool:
    name, _ = signature(expect.function or "")
    return passes(source(text, name), expect.tests)
