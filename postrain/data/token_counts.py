"""Counts of the tokens of many items, in one pass over them."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from postrain.data.chat import Template
from postrain.data.encode import Encoded

PERCENTILES = (50, 90, 99, 100)


class TokenCounts:
    """Counts of training items."""

    def __init__(self, template: Template, total: Any = None) -> None:
        """`total` is a hash of the items of several sources, which is updated too."""
        self.bos, self.ends = template.tokenizer.bos_token_id, frozenset(template.stop_ids)
        self.items, self.most_bos, self.ended = 0, 0, 0
        self.lengths, self.learned = array("q"), array("q")
        self.labels, self.true_labels, self.label_names = 0, 0, ("", "")
        self.digest = hashlib.sha256()
        """Of the signatures of the counted items."""
        self.total = total

    def counted(self, items: Iterable[Encoded]) -> Iterator[Encoded]:
        """The items, counted as training items."""
        for item in items:
            self.items += 1
            signature = item.signature()
            self.digest.update(signature)
            if self.total is not None:
                self.total.update(signature)
            for ids in item.sequences():
                self.lengths.append(len(ids))
                if self.bos is not None:
                    self.most_bos = max(self.most_bos, _leading(ids.numpy(), self.bos))
            for row in item.token_rows():
                supervised = row.supervised.numpy()
                self.learned.append(int(np.count_nonzero(supervised)))
                self.ended += bool(supervised[-1]) and int(row.ids.numpy()[-1]) in self.ends
            labels = item.label_values()
            if labels:
                self.labels, self.true_labels = self.labels + len(labels), self.true_labels + sum(labels)
                self.label_names = item.label_names
            yield item

    @classmethod
    def joined(cls, template: Template, parts: Iterable[TokenCounts], digest: Any) -> TokenCounts:
        """The counts of all parts; `digest` is the hash of their items in order."""
        whole = cls(template)
        for one in parts:
            whole.items, whole.ended = whole.items + one.items, whole.ended + one.ended
            whole.most_bos = max(whole.most_bos, one.most_bos)
            whole.lengths.extend(one.lengths)
            whole.learned.extend(one.learned)
            whole.labels, whole.true_labels = whole.labels + one.labels, whole.true_labels + one.true_labels
            whole.label_names = one.label_names if one.labels else whole.label_names
        whole.digest = digest
        return whole

    def fields(self) -> dict[str, Any]:
        """The counts as fields of an audit."""
        lengths, learned = np.sort(np.array(self.lengths)), np.array(self.learned)
        rows = max(1, len(learned))
        labels = zip(self.label_names, (self.true_labels, self.labels - self.true_labels), strict=True)
        return {
            "items": self.items,
            "tokens": int(lengths.sum()),
            "supervised": int(learned.sum()),
            "supervised_min": int(learned.min()) if len(learned) else 0,
            "supervised_mean": int(learned.sum()) / rows,
            "unsupervised_rows": int((learned == 0).sum()),
            "ended": self.ended / rows,
            "bos": self.most_bos,
            "lengths": {_name(p): int(lengths[(len(lengths) - 1) * p // 100]) for p in PERCENTILES if len(lengths)},
            "labels": dict(labels) if self.labels else {},
        }


def fingerprint(items: Iterable[Encoded], gold: Sequence[Any] = (), after: Any = None) -> str:
    """sha256 of the tokens, masks, labels, margins and columns of all items in order, and of `gold`.

    `after` is the digest of the items before them.
    """
    digest = after.copy() if after else hashlib.sha256()
    for item in items:
        digest.update(item.signature())
    if gold:
        digest.update(repr(gold).encode())
    return digest.hexdigest()


def _leading(ids: np.ndarray, token: int) -> int:
    """How often `token` occurs at the beginning."""
    return next((place for place, found in enumerate(ids) if found != token), len(ids))


def _name(percentile: int) -> str:
    return "longest" if percentile == 100 else f"p{percentile}"
