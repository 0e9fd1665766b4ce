"""Rows of any data format from the world: text, demonstrations, preferences, judgements, prompts, step-labelled chains.

Every row but plain text carries its `category` and its `gold` specification, from which gold.score says what a
completion is really worth. Stories and sums are continuations of running text (their completions begin with a space,
no chat template wanted); facts and instructions are chat.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, get_args

from postrain.errors import ConfigError
from postrain.world import facts, instructions, stories, sums
from postrain.world.corruptions import draft
from postrain.world.gold import score, weighted
from postrain.world.items import Item, Split, generator, split_of

Kind = Literal["text", "demonstrations", "preferences", "judgements", "prompts", "steps"]
Task = Literal["stories", "sums", "instructions", "facts", "mixed", "pages"]
Row = dict[str, Any]

CONTINUATIONS: tuple[Task, ...] = ("stories", "sums")
NOISE = 0.1
"""Temperature of the annotators: P(a over b) = sigmoid((gold(a) - gold(b)) / noise)."""
THUMB = 0.7
"""Gold score at which a thumb goes up half of the time."""

MAKERS: dict[Task, Callable[[random.Random], Item]] = {
    "stories": stories.make,
    "sums": sums.make,
    "facts": facts.make,
    "instructions": instructions.make,
}
MIX: dict[Task | Literal["code"], float] = {"stories": 0.35, "sums": 0.45, "facts": 0.15, "code": 0.05}
"""Shares of documents in mixed text."""
ASKED: dict[Task, Callable[[random.Random], Item]] = {**MAKERS, "sums": sums.asked}
"""What the kinds other than text are made from."""
PAGE = (*[1] * 40, 2, 4, 12)
"""How many mixed documents stand on a page. Mostly one: where a page holds one story, a name in sight is the right one,
and copying it is soon learned; the long pages see to it that every position of a long context is learned too."""
END_OF_TEXT = "<|endoftext|>"
ANSWERED: tuple[Task, ...] = ("stories", "sums", "instructions", "facts")
SENSE: dict[Kind, tuple[Task, ...]] = {
    "text": ("stories", "sums", "facts", "mixed", "pages"),
    "demonstrations": ANSWERED,
    "preferences": ANSWERED,
    "judgements": ANSWERED,
    "prompts": ANSWERED,
    "steps": ("sums",),
}


def rows(kind: Kind, *, task: Task, count: int, seed: int, split: Split, noise: float = NOISE) -> list[Row]:
    """The first `count` rows of the stream that (kind, task, seed, split, noise) names."""
    _check(kind, task, count, split, noise)
    return list(islice(stream(kind, task=task, seed=seed, split=split, noise=noise), count))


def stream(kind: Kind, *, task: Task, seed: int, split: Split, noise: float = NOISE) -> Iterator[Row]:
    """The same rows without an end."""
    rng = generator(seed, kind, task, split)
    if task == "pages":
        documents = stream(kind, task="mixed", seed=seed, split=split)
        while True:
            yield {"text": END_OF_TEXT.join(row["text"] for row in islice(documents, rng.choice(PAGE)))}
    while True:
        item = _draw(rng, task) if kind == "text" else ASKED[task](rng)
        # A document of facts holds several, none of which is asked about: its own words decide its side.
        content = item.text if kind == "text" and item.category == "facts" else item.content
        if split_of(content) == split:
            yield _row(kind, item, rng, noise)


def _draw(rng: random.Random, task: Task) -> Item:
    chosen = rng.choices(tuple(MIX), tuple(MIX.values()))[0] if task == "mixed" else task
    return instructions.code(rng) if chosen == "code" else MAKERS[chosen](rng)


def _row(kind: Kind, item: Item, rng: random.Random, noise: float) -> Row:
    if kind == "text":
        return {"text": item.text}
    about = {"category": item.category, "gold": item.gold}
    if kind == "demonstrations":
        return {"prompt": item.prompt, "completion": item.reference, **about}
    if kind == "preferences":
        return {"prompt": item.prompt, **_preference(item, rng, noise), **about}
    if kind == "judgements":
        return {"prompt": item.prompt, **_judgement(item, rng, noise), **about}
    if kind == "steps":
        shown = item.steps if rng.random() < 0.4 else sums.flawed(rng, sums.terms_of(item.content))
        return {"prompt": item.prompt, "steps": list(shown), "labels": sums.labels(item.steps, shown), **about}
    return {"prompt": item.prompt, **({"answer": item.answer} if item.answer is not None else {}), **about}


def _preference(item: Item, rng: random.Random, noise: float) -> Row:
    """Two drafts that differ in more than fluency; which one is called the better is a draw of Bradley and Terry's.

    Fluency decides nothing about which drafts are shown: the tokenizer was trained on these very texts.
    """
    while True:
        a, b = draft(item, rng), draft(item, rng)
        first, second = (score(item.prompt, text, item.gold) for text in (a, b))
        if weighted(first, item.gold) != weighted(second, item.gold):
            break
    gap = first["total"] - second["total"]
    if rng.random() >= _sigmoid(gap / noise):
        a, b, gap = b, a, -gap
    return {"chosen": a, "rejected": b, "gold_margin": round(gap, 6)}


def _judgement(item: Item, rng: random.Random, noise: float) -> Row:
    completion = draft(item, rng)
    return {
        "completion": completion,
        "label": rng.random() < _sigmoid((score(item.prompt, completion, item.gold)["total"] - THUMB) / noise),
    }


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _check(kind: str, task: str, count: int, split: str, noise: float) -> None:
    if kind not in SENSE:
        raise ConfigError(f"world kind={kind}: expected one of {', '.join(SENSE)}")
    if task not in SENSE[kind]:
        raise ConfigError(f"world task={task}: {kind} can be had for {', '.join(SENSE[kind])}; name one of these")
    if split not in get_args(Split):
        raise ConfigError(f"world split={split}: expected train or eval")
    if count < 0:
        raise ConfigError(f"world count={count}: expected a number of rows, 0 or more")
    if noise <= 0:
        raise ConfigError(f"world noise={noise}: expected more than 0; try noise={NOISE}")
