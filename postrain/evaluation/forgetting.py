"""Forgetting: whether a tuned model still foresees the text its base was trained on, and still knows its facts.

The base text and the facts are the bundled world's, which is what nano comes from; the facts are everyday ones that any
model may know. For another base, `path` names a file of text like its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from postrain.data.formats import parse
from postrain.data.kinds.text import Text
from postrain.data.readers import read_file
from postrain.data.records import convert
from postrain.evaluation.completions import asked_text
from postrain.evaluation.likelihood import over_tokens, record, row_losses
from postrain.evaluation.measures import Estimate, Finding, Subject
from postrain.types import Count, CountOrZero, Rows
from postrain.world.facts import Fact, all_facts
from postrain.world.rows import rows as world_rows

WORLD = "the text is the bundled world's; evaluation.measures.forgetting.path=FILE measures another"


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """Loss and perplexity of base text, and the share of facts a model finds likelier than all their rivals.

    A fact is known where its statement has a larger log-probability than the same statement of every other value of the
    relation ("The colour of grass is green." against red, blue, ...); a tie counts half.
    """

    path: str | None = None
    """A file of running text in place of the bundled world's."""
    texts: Count = 64
    """Documents at most."""
    facts: CountOrZero = 48
    """Facts at most, spread evenly over the relations; 0 asks for none."""

    def __call__(self, subject: Subject) -> Finding:
        texts = as_rows(subject, self._documents())
        losses = row_losses(subject, texts)
        records = [{"row": f"text {row}", **record(*sums)} for row, sums in zip(texts.row_ids, losses, strict=True)]
        known = self._known(subject)
        accuracy = {"fact_accuracy": Estimate.share([one["fact_accuracy"] for one in known])} if known else {}
        return Finding(
            metrics={**over_tokens(losses), **accuracy},
            example=asked_text(subject, texts.ids[0]),
            records=(*records, *known),
            notes=() if self.path else (WORLD,),
        )

    def _documents(self) -> list[str]:
        if self.path is None:
            return [row["text"] for row in world_rows("text", task="mixed", count=self.texts, seed=0, split="eval")]
        table = read_file(self.path)
        found = convert(parse(table, {}).records, Text.__name__, source=table.name).records
        return [one.text for one in found if isinstance(one, Text)][: self.texts]

    def _known(self, subject: Subject) -> list[Mapping[str, Any]]:
        """A record for each fact that is asked about."""
        facts = spread(all_facts(), self.facts)
        if not facts:
            return []
        rivals = [(fact.value, *others(fact)) for fact in facts]
        said = [fact.plain(value) for fact, values in zip(facts, rivals, strict=True) for value in values]
        found = iter([-loss for loss, _ in row_losses(subject, as_rows(subject, said, end=False))])
        return [
            fact_record(fact, values, [next(found) for _ in values]) for fact, values in zip(facts, rivals, strict=True)
        ]


def fact_record(fact: Fact, values: Sequence[str], logps: Sequence[float]) -> Mapping[str, Any]:
    """Whether a fact is known, from the log-probabilities of its statements; the first value is the true one."""
    true, best = logps[0], max(logps[1:])
    return {
        "row": f"fact {fact.relation}: {fact.subject}",
        "fact_accuracy": 0.5 if true == best else float(true > best),
        "likeliest": values[logps.index(max(logps))],
        "true": fact.value,
        "margin": true - best,
    }


def others(fact: Fact) -> tuple[str, ...]:
    """The values a fact could be mistaken for; what its subject says itself is none of them."""
    return tuple(value for value in fact.others if value.lower() not in fact.subject.lower().split())


def spread(facts: Sequence[Fact], count: int) -> list[Fact]:
    """`count` of the facts at even distances, all of them where there are no more."""
    wanted = min(count, len(facts))
    return [facts[place * len(facts) // wanted] for place in range(wanted)]


def as_rows(subject: Subject, texts: Sequence[str], *, end: bool = True) -> Rows:
    """Texts as a model learned to read them, cut at its context; all but the first token is to be foreseen."""
    ends = [subject.tokenizer.eos_token_id] if end else []
    ids = tuple(torch.cat([subject.template.encode_text(text), torch.tensor(ends).long()]) for text in texts)
    cut = tuple(row[: subject.context] for row in ids)
    return Rows(cut, tuple(all_but_first(row) for row in cut), tuple(range(len(cut))))


def all_but_first(ids: Tensor) -> Tensor:
    """bool [L]."""
    return torch.arange(len(ids)) > 0
