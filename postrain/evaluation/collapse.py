"""Whether a policy has collapsed: its completions have one word each, or are the same text whatever the prompt.

Standard library only: the report imports it too. A loop inside long, different completions is repetition.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

DISTINCT, ONE_WORD = "completion/distinct", "completion/one_word"
FEW, MOST = 0.25, 0.5
"""A share of different completions up to which, and a share of one-word ones from which, a policy has collapsed."""


def distinct_share(texts: Sequence[str]) -> float:
    """Different completions over completions, blanks and case aside; 1 where there are none."""
    return len({" ".join(text.lower().split()) for text in texts}) / len(texts) if texts else 1.0


def one_word_share(texts: Sequence[str]) -> float:
    """Share of completions that are empty, one word, or one word again and again."""
    return sum(len(set(text.lower().split())) <= 1 for text in texts) / len(texts) if texts else 0.0


def collapsed(before: Mapping[str, float], after: Mapping[str, float]) -> str:
    """How the completions of an evaluation have collapsed since the one before training; empty where they have not.

    Both hold held-out metrics by name. Completions that were short or alike from the beginning, as labels and numbers
    are, have not collapsed: the share has to be twice as bad as before training.
    """
    distinct, one_word = f"eval/{DISTINCT}", f"eval/{ONE_WORD}"
    found = []
    if distinct in after and after[distinct] <= min(FEW, before.get(distinct, 1.0) / 2):
        found.append(f"{after[distinct]:.0%} of the completions are different{_earlier(before, distinct)}")
    if one_word in after and after[one_word] >= max(MOST, 2 * before.get(one_word, 0.0)):
        found.append(f"{after[one_word]:.0%} have at most one word{_earlier(before, one_word)}")
    return ", ".join(found)


def _earlier(before: Mapping[str, float], name: str) -> str:
    return f" ({before[name]:.0%} before training)" if name in before else ""
