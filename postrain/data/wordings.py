"""A handful of facts as a source: learned in some wordings and asked in others.

What tells knowing a fact from knowing a phrase: held-out rows ask for the very facts that are learned, in words that
are not. Rows carry the bare `answer` and a gold score, which is 1 where a completion names the answer and that of no
other fact. Leaves out drawing facts: they stand in the YAML, where whoever learns from an experiment can read them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from postrain.data.readers import Row, Table
from postrain.data.sources import Loaded, Source
from postrain.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class Wordings(Source):
    """Every fact in every wording."""

    facts: tuple[Mapping[str, str], ...]
    """What is so: values for the {names} that stand in the texts below."""
    learned: tuple[str, ...]
    """Prompts to learn from."""
    asked: tuple[str, ...]
    """Held-out prompts."""
    completion: str
    """What a good answer says."""
    answer: str
    """The word that makes it right."""

    def load(self, *, eval_rows: int) -> Loaded:
        """Held-out rows come wording by wording. Raises ConfigError for a text that asks for what no fact has."""
        if not self.facts:
            raise ConfigError("data.source.facts: expected at least one, such as {who: Mia, place: river}")
        return Loaded(self._table("learned", self.learned), self._table("asked", self.asked))

    def _table(self, side: str, wordings: Sequence[str]) -> Table:
        if not wordings:
            raise ConfigError(f"data.source.{side}: expected at least one wording, such as Where is {{who}}?")
        values = [self._values(side, wording, fact) for wording in wordings for fact in self.facts]
        rows = tuple(Row(number, value) for number, value in enumerate(values))
        return Table(f"{len(self.facts)} facts in {len(wordings)} wordings ({side})", "row", rows)

    def _values(self, side: str, wording: str, fact: Mapping[str, str]) -> dict[str, Any]:
        answer = filled("answer", self.answer, fact)
        others = {filled("answer", self.answer, other) for other in self.facts} - {answer}
        return {
            "prompt": filled(side, wording, fact),
            "completion": filled("completion", self.completion, fact),
            "answer": answer,
            "gold": {
                "weights": {"correct": 1.0},
                "correct": {"type": "word", "accept": answer, "reject": sorted(others)},
            },
        }


def filled(key: str, text: str, fact: Mapping[str, str]) -> str:
    """A text with a fact's values in place of its {names}."""
    try:
        return text.format(**fact)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"data.source.{key}: {text!r} cannot be filled from {dict(fact)} ({error}); every fact needs every name"
        ) from None
