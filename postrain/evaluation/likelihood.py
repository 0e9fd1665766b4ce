"""Tasks on log-probabilities of given texts: perplexity of held-out rows, preference accuracy, and forgetting.

Perplexities of two models are comparable only for the same tokens. Preference accuracy is the share of pairs whose
chosen completion has the larger log-probability. Forgetting evaluates base text and facts. The default is the text of
the bundled world, on which nano was trained (the facts are everyday knowledge); for another base model, `path` names a
file with text like its training data.

Axes: B rows or pairs, T supervised tokens of a row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from postrain.data.encode import EncodedRow
from postrain.data.formats import parse
from postrain.data.kinds.preference import EncodedPair, Pairs
from postrain.data.kinds.text import Text
from postrain.data.module import DataModule
from postrain.data.readers import read_file
from postrain.data.records import convert
from postrain.errors import ConfigError
from postrain.evaluation.completions import decoded_prompt
from postrain.evaluation.estimate import Estimate
from postrain.evaluation.task import EvalModel, EvalResult
from postrain.hardware.shares import map_items
from postrain.models.micro_batches import in_micro_batches
from postrain.models.scoring import score
from postrain.types import Count, CountOrZero, Rows
from postrain.world.facts import Fact, all_facts
from postrain.world.rows import rows as world_rows

NEEDS_TARGETS = (
    "needs completions or running text, and the data has only prompts; use data such as data=world_demonstrations"
)


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Cross-entropy of held-out tokens: completions given their prompts, or whole texts.

    `loss` [nats/token] is over all tokens; `perplexity` is its exponential. Records hold both per row.
    """

    rows: Count = 128
    """Maximum number of held-out rows; data.eval_rows sets how many there are."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        data = supervised_data(eval_model)
        if data is None:
            return EvalResult(metrics={}, notes=(NEEDS_TARGETS,))
        items = [item for item in data.eval if isinstance(item, EncodedRow)][: self.rows]
        batch = EncodedRow.collate(items)
        found = row_losses(eval_model, batch)
        if not any(tokens for _, tokens in found):
            return EvalResult(metrics={}, notes=(NEEDS_TARGETS,))
        return EvalResult(
            metrics=loss_and_perplexity(found),
            example=decoded_prompt(eval_model, batch.ids[0]),
            records=tuple({"row": row, **record(*sums)} for row, sums in zip(batch.row_ids, found, strict=True)),
        )


def supervised_data(eval_model: EvalModel) -> DataModule | None:
    """The data as rows with supervised tokens; None if it has none."""
    for kind in ("Demonstration", "Text"):
        try:
            return eval_model.data_as(kind)
        except ConfigError:
            continue
    return None


@torch.no_grad()
def row_losses(eval_model: EvalModel, batch: Rows) -> list[tuple[float, int]]:
    """The summed loss of each row's supervised tokens in nats, and their number, [B]."""

    def losses(items: range) -> list[tuple[float, int]]:
        rows = batch.select(items)
        found = in_micro_batches(lambda part: score(eval_model.model, part), rows, eval_model.micro_batch_tokens)
        sums = (-found.logps_BT.cpu().double().sum(1)).tolist()
        return list(zip(sums, found.mask_BT.sum(1).tolist(), strict=True))

    return map_items(len(batch), losses)


def loss_and_perplexity(found: Sequence[tuple[float, int]]) -> dict[str, Estimate]:
    """Loss per token and perplexity, from each row's sum and count; the interval is over rows."""
    loss = Estimate.ratio(*zip(*found, strict=True))
    ends = {name: exponential(getattr(loss, name)) for name in ("value", "low", "high")}
    return {"loss": loss, "perplexity": replace(loss, **ends)}


def record(total: float, tokens: int) -> Mapping[str, Any]:
    """The record of a row."""
    loss = total / max(tokens, 1)
    return {"loss": loss, "perplexity": exponential(loss), "weight": tokens}


def exponential(loss: float) -> float:
    """e^loss; infinite on overflow."""
    return math.exp(loss) if loss < 700 else math.inf


NEEDS_PAIRS = "needs preference pairs; data=world_preferences has them"


@dataclass(frozen=True, kw_only=True)
class PreferenceAccuracy:
    """The share of held-out pairs whose chosen completion has the larger log-probability (ties half), and the margin.

    `accuracy` and `margin` are of summed log-probabilities (DPO's implicit reward is their difference to the
    reference's). `accuracy_per_token` and `margin_per_token` are of mean log-probabilities, which do not favour short
    completions (SimPO). Margins are in nats and nats/token.
    """

    pairs: Count = 128
    """Maximum number of held-out pairs."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        try:
            data = eval_model.data_as("Preference")
        except ConfigError:
            return EvalResult(metrics={}, notes=(NEEDS_PAIRS,))
        batch = EncodedPair.collate([item for item in data.eval if isinstance(item, EncodedPair)][: self.pairs])
        records = [
            {
                "row": row,
                "accuracy": ranked_correctly(chosen - rejected),
                "margin": chosen - rejected,
                "accuracy_per_token": ranked_correctly(chosen / tokens - rejected / other_tokens),
                "margin_per_token": chosen / tokens - rejected / other_tokens,
            }
            for row, (chosen, tokens), (rejected, other_tokens) in zip(
                batch.row_ids, *logps(eval_model, batch), strict=True
            )
        ]
        shares = {name: Estimate.share([one[name] for one in records]) for name in ("accuracy", "accuracy_per_token")}
        margins = {name: Estimate.mean([one[name] for one in records]) for name in ("margin", "margin_per_token")}
        return EvalResult(
            metrics={**shares, **margins},
            example=decoded_prompt(eval_model, batch.chosen.ids[0]),
            records=tuple(records),
        )


@torch.no_grad()
def logps(eval_model: EvalModel, batch: Pairs) -> tuple[list[tuple[float, int]], list[tuple[float, int]]]:
    """Summed log-probability and number of tokens of each chosen and of each rejected completion, [B] each."""
    found = [(-loss, max(tokens, 1)) for loss, tokens in row_losses(eval_model, batch.chosen + batch.rejected)]
    return found[: len(batch)], found[len(batch) :]


def ranked_correctly(margin: float) -> float:
    """1 if the chosen completion has the larger log-probability, ½ for a tie."""
    return 0.5 if margin == 0 else float(margin > 0)


BUNDLED_TEXT = "evaluated on text of the bundled world; evaluation.tasks.forgetting.path=FILE uses other text"


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """Loss and perplexity of base text, and accuracy on facts (`fact_accuracy`).

    A fact is known if its statement has a larger log-probability than the same statement with every other value of the
    relation ("The colour of grass is green." against red, blue, ...); a tie counts half.
    """

    path: str | None = None
    """A file of running text; null is the text of the bundled world."""
    texts: Count = 64
    """Maximum number of documents."""
    facts: CountOrZero = 48
    """Maximum number of facts, spread evenly over the relations; 0 disables them."""

    def __call__(self, eval_model: EvalModel) -> EvalResult:
        texts = encoded_texts(eval_model, self._documents())
        losses = row_losses(eval_model, texts)
        records = [{"row": f"text {row}", **record(*sums)} for row, sums in zip(texts.row_ids, losses, strict=True)]
        known = self._known(eval_model)
        accuracy = {"fact_accuracy": Estimate.share([one["fact_accuracy"] for one in known])} if known else {}
        return EvalResult(
            metrics={**loss_and_perplexity(losses), **accuracy},
            example=decoded_prompt(eval_model, texts.ids[0]),
            records=(*records, *known),
            notes=() if self.path else (BUNDLED_TEXT,),
        )

    def _documents(self) -> list[str]:
        if self.path is None:
            return [row["text"] for row in world_rows("text", task="mixed", count=self.texts, seed=0, split="eval")]
        table = read_file(self.path)
        found = convert(parse(table, {}).records, Text.__name__, source=table.name).records
        return [one.text for one in found if isinstance(one, Text)][: self.texts]

    def _known(self, eval_model: EvalModel) -> list[Mapping[str, Any]]:
        """One record per evaluated fact."""
        facts = evenly_spaced(all_facts(), self.facts)
        if not facts:
            return []
        rivals = [(fact.value, *rival_values(fact)) for fact in facts]
        statements = [fact.plain(value) for fact, values in zip(facts, rivals, strict=True) for value in values]
        found = iter([-loss for loss, _ in row_losses(eval_model, encoded_texts(eval_model, statements, end=False))])
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


def rival_values(fact: Fact) -> tuple[str, ...]:
    """The other values of a fact's relation, without those that its subject contains."""
    return tuple(value for value in fact.others if value.lower() not in fact.subject.lower().split())


def evenly_spaced(facts: Sequence[Fact], count: int) -> list[Fact]:
    """`count` facts at even distances; all of them if there are fewer."""
    wanted = min(count, len(facts))
    return [facts[index * len(facts) // wanted] for index in range(wanted)]


def encoded_texts(eval_model: EvalModel, texts: Sequence[str], *, end: bool = True) -> Rows:
    """Encoded texts, truncated at the model's context; all tokens but the first are supervised."""
    ends = [eval_model.tokenizer.eos_token_id] if end else []
    ids = tuple(torch.cat([eval_model.template.encode_text(text), torch.tensor(ends).long()]) for text in texts)
    cut = tuple(row[: eval_model.context] for row in ids)
    return Rows(cut, tuple(all_but_first(row) for row in cut), tuple(range(len(cut))))


def all_but_first(ids: Tensor) -> Tensor:
    """bool [L]."""
    return torch.arange(len(ids)) > 0
