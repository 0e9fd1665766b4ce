"""The query suite: hand-written everyday questions in several phrasings, each with checks of the answer.

Works for any model, through its chat template and without data. Queries are the unit of statistics, since phrasings of
a query are not independent. The queries are in query_file.py and assets/queries.jsonl, the checks in query_checks.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import Annotated, Any

import torch

from postrain.config.schema import Confirm
from postrain.data.conversation import user
from postrain.data.kinds.prompt import Prompts
from postrain.errors import ConfigError
from postrain.evaluation.completions import collect_in_shares
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.query_checks import Expect, Verdict, check_answer, has_extractable_answer, refuses
from postrain.evaluation.query_code import passes, signature, source
from postrain.evaluation.query_file import Query, read_queries
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.seeds import derive_seed
from postrain.suggestions import did_you_mean
from postrain.types import Count, NonNegative, Size

CODE_NOT_RUN = "code was parsed, not run; evaluation.tasks.queries.allow_execution=true runs it on this machine"
# Metrics of queries with several phrasings.
CONSISTENCY_METRICS = ("consistency", "agreement", "agreement/paraphrase")


@dataclass(frozen=True)
class QueryAnswer:
    """One phrasing of a query with its answer and verdict."""

    query: Query
    phrasing: int
    prompt: str
    """The exact model input."""
    response: str
    tokens: int
    finished: bool
    verdict: Verdict

    def record(self) -> dict[str, Any]:
        """The entry in queries.jsonl."""
        kept = {name: getattr(self, name) for name in ("phrasing", "prompt", "response", "tokens", "finished")}
        return {**kept, **asdict(self.verdict)}


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Accuracy and consistency on hand-written queries with checked answers."""

    temperature: NonNegative = 0.0
    """Sampling temperature; 0 is greedy."""
    max_new_tokens: Size = 128
    """Maximum number of tokens per answer; fewer if the model's context is too short."""
    categories: tuple[str, ...] | None = None
    """Categories to include: factual, reasoning, instruction_following, creative, code, paraphrase; null is all."""
    phrasings: Count | None = None
    """Maximum number of phrasings per query; null is all."""
    path: str | None = None
    """A .jsonl file in the format of postrain/assets/queries.jsonl; null is the bundled one."""
    allow_execution: Annotated[bool, Confirm("runs Python that the model writes")] = False
    """Run the tests of code answers on this machine, with resource limits; false only parses the code."""

    def __post_init__(self) -> None:
        # Report a misspelt category before a long run.
        self._queries()
        if self.allow_execution and sys.platform != "linux":
            raise ConfigError(
                "evaluation.tasks.queries.allow_execution=true: running code needs Linux, whose limits it relies "
                f"on; this is {sys.platform}; leave it false"
            )

    @torch.no_grad()
    def __call__(self, eval_model: EvalModel) -> EvalResult:
        """See `EvalTask`."""
        phrasings = [(query, number) for query in self._queries() for number in range(self._phrasings(query))]
        ids = [
            eval_model.template.encode_prompt(user(query.phrasings[number]), row=row)
            for row, (query, number) in enumerate(phrasings)
        ]
        room = eval_model.context - max(map(len, ids))
        if room < 1:
            return EvalResult(
                metrics={}, notes=(f"the context of {eval_model.context} tokens is too short for the queries",)
            )
        query_answers = self._ask(eval_model, phrasings, ids, min(room, self.max_new_tokens))
        records = tuple(record(group) for group in _grouped(query_answers).values())
        return EvalResult(
            metrics=metrics(records),
            example=query_answers[0].prompt,
            records=records,
            notes=tuple(self._notes(query_answers, room)),
        )

    def _queries(self) -> tuple[Query, ...]:
        queries = read_queries(self.path)
        known = list(dict.fromkeys(query.category for query in queries))
        for name in known if self.categories is None else self.categories:
            if name not in known:
                meant = did_you_mean(name, known, f"expected some of {', '.join(known)}")
                raise ConfigError(f"evaluation.tasks.queries.categories: unknown category {name}; {meant}")
        found = tuple(query for query in queries if self.categories is None or query.category in self.categories)
        if not found:
            raise ConfigError(
                f"evaluation.tasks.queries.categories: is empty; give some of {', '.join(known)}, or null for all"
            )
        return found

    def _phrasings(self, query: Query) -> int:
        return min(len(query.phrasings), self.phrasings or len(query.phrasings))

    def _ask(
        self, eval_model: EvalModel, phrasings: Sequence[tuple[Query, int]], ids: Sequence[torch.Tensor], tokens: int
    ) -> list[QueryAnswer]:
        engine = replace(eval_model.engine, temperature=self.temperature, max_new_tokens=tokens)  # type: ignore[type-var]
        prompts = Prompts(
            ids=tuple(ids),
            texts=tuple(query.phrasings[number] for query, number in phrasings),
            columns=({},) * len(ids),
            row_ids=tuple(range(len(ids))),
        )
        # Seeds depend on the query's id, so that other queries do not change its answers.
        seeds = [derive_seed(eval_model.seed, f"queries {query.id}", number) for query, number in phrasings]
        rollouts = collect_in_shares(engine, eval_model.model, eval_model.template, prompts, seeds=seeds)
        lengths = [int(own.sum()) for own in rollouts.rows.supervised]
        answers = zip(phrasings, ids, rollouts.completions, lengths, rollouts.finished_B.tolist(), strict=True)
        return [
            QueryAnswer(
                query=query,
                phrasing=number,
                prompt=eval_model.template.decode_all(prompt.tolist()),
                response=response,
                tokens=length,
                finished=finished,
                verdict=check_answer(query.expect, response, _passes if self.allow_execution else None),
            )
            for (query, number), prompt, response, length, finished in answers
        ]

    def _notes(self, query_answers: Sequence[QueryAnswer], room: int) -> Iterator[str]:
        if room < self.max_new_tokens:
            yield f"answers were limited to {room} tokens instead of {self.max_new_tokens} by the model's context"
        if not self.allow_execution and any(one.query.expect.tests for one in query_answers):
            yield CODE_NOT_RUN


def record(query_answers: Sequence[QueryAnswer]) -> Mapping[str, Any]:
    """The record of a query: its value of each metric, and its phrasings with their answers."""
    query, accuracy = query_answers[0].query, fmean(one.verdict.right for one in query_answers)
    shares = {
        "accuracy": accuracy,
        f"accuracy/{query.category}": accuracy,
        "worst_phrasing": accuracy == 1,
        **(_consistency(query, query_answers) if len(query_answers) > 1 else {}),
        "refusals_or_empty": fmean(refuses(one.response) for one in query_answers),
        "finished": fmean(one.finished for one in query_answers),
        "tokens": fmean(one.tokens for one in query_answers),
    }
    return {"row": query.id, "category": query.category, **shares, "phrasings": [one.record() for one in query_answers]}


def metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, Estimate]:
    """All metrics; a query is one observation, with the mean over its phrasings."""
    categories = dict.fromkeys(f"accuracy/{one['category']}" for one in records)
    shares = {
        name: Estimate.share([one[name] for one in records if name in one])
        for name in ("accuracy", *categories, "worst_phrasing", *CONSISTENCY_METRICS, "refusals_or_empty", "finished")
        if any(name in one for one in records)
    }
    return {**shares, "tokens": Estimate.mean([one["tokens"] for one in records], 0)}


def agreement(answers: Sequence[str]) -> float:
    """The share of equal pairs among at least two answers."""
    return fmean(one == other for one, other in combinations(answers, 2))


def _consistency(query: Query, query_answers: Sequence[QueryAnswer]) -> dict[str, float]:
    """Consistency of the verdicts over phrasings, and agreement of the extracted answers, correct or not."""
    found: dict[str, float] = {"consistency": len({one.verdict.right for one in query_answers}) == 1}
    if has_extractable_answer(query.expect):
        found["agreement"] = agreement([one.verdict.answer for one in query_answers])
        if query.category == "paraphrase":
            found["agreement/paraphrase"] = found["agreement"]
    return found


def _grouped(query_answers: Sequence[QueryAnswer]) -> Mapping[str, list[QueryAnswer]]:
    groups: dict[str, list[QueryAnswer]] = {}
    for one in query_answers:
        groups.setdefault(one.query.id, []).append(one)
    return groups


def _passes(text: str, expect: Expect) -> bool:
    name, _ = signature(expect.function or "")
    return passes(source(text, name), expect.tests)
