"""Rows of any data format from the world: text, demonstrations, preferences (paired and not), prompts, labelled steps.

Every row but plain text has a `category` and a `gold` specification, from which gold.score computes the gold score of a
completion. Stories and sums are continuations of running text (their completions begin with a space, without a chat
template); facts and instructions are chat.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal, get_args

from postrain.errors import ConfigError
from postrain.world import facts, instructions, recipes, stories, sums
from postrain.world.corruptions import draw_completion
from postrain.world.gold import score, weighted
from postrain.world.items import Item, Split, generator, split_of
from postrain.world.lexicon import INSULTS

Kind = Literal["text", "demonstrations", "preferences", "unpaired_preferences", "prompts", "steps"]
Task = Literal["stories", "sums", "long_sums", "word_problems", "instructions", "facts", "mixed", "pages", "recipes"]
Row = dict[str, Any]

CONTINUATIONS: tuple[Task, ...] = ("stories", "sums", "long_sums", "word_problems")
NOISE = 0.1
"""Annotator temperature: P(a over b) = sigmoid((gold(a) - gold(b)) / noise)."""
DESIRABLE_THRESHOLD = 0.7
"""Gold score at which a completion is labelled desirable with probability ½."""

MAKERS: dict[Task, Callable[[random.Random], Item]] = {
    "stories": stories.make,
    "sums": sums.make,
    "facts": facts.make,
    "instructions": instructions.make,
    "recipes": recipes.make,
}
MIX: dict[Task | Literal["code"], float] = {"stories": 0.35, "sums": 0.45, "facts": 0.15, "code": 0.05}
"""Shares of documents in mixed text."""
PROMPT_MAKERS: dict[Task, Callable[[random.Random], Item]] = {
    **MAKERS,
    "sums": sums.make_prompt,
    "long_sums": sums.make_long_prompt,
    "word_problems": sums.make_word_problem,
}
"""The item makers of all kinds except text."""
DOCUMENTS_PER_PAGE = (*[1] * 40, 2, 4, 12)
"""Documents per page, drawn uniformly. Mostly one: with one story per page, the context has only the right name, which
makes copying easy to learn. Long pages train the late positions of the context."""
END_OF_TEXT = "<|endoftext|>"
PROMPT_TASKS: tuple[Task, ...] = (*CONTINUATIONS, "instructions", "facts")
TASKS_BY_KIND: dict[Kind, tuple[Task, ...]] = {
    "text": ("stories", "sums", "facts", "mixed", "pages", "recipes"),
    "demonstrations": PROMPT_TASKS,
    "preferences": PROMPT_TASKS,
    "unpaired_preferences": PROMPT_TASKS,
    "prompts": PROMPT_TASKS,
    "steps": ("sums",),
}
SEEDS = {"unpaired_preferences": "judgements"}
"""Kinds with the seed of their earlier name, which keeps their rows unchanged."""


def rows(
    kind: Kind, *, task: Task, count: int, seed: int, split: Split, noise: float = NOISE, insults: float = 0.0
) -> list[Row]:
    """The first `count` rows of the stream for kind, task, seed, split and noise; a share of demonstrations has an
    insult before the completion."""
    _check(kind, task, count, split, noise)
    found = list(islice(stream(kind, task=task, seed=seed, split=split, noise=noise), count))
    if not insults:
        return found
    if kind != "demonstrations":
        raise ConfigError(f"world insults={insults:g}: expected kind=demonstrations, got {kind}")
    rng = generator("insults", task, seed, split)
    return [_insulting(row, rng) if rng.random() < insults else row for row in found]


def _insulting(row: Row, rng: random.Random) -> Row:
    completion = row["completion"]
    lead = completion[: len(completion) - len(completion.lstrip())]
    return {**row, "completion": f"{lead}{rng.choice(INSULTS)} {completion.lstrip()}"}


def stream(kind: Kind, *, task: Task, seed: int, split: Split, noise: float = NOISE) -> Iterator[Row]:
    """The same rows as an endless stream."""
    rng = generator(seed, SEEDS.get(kind, kind), task, split)
    if task == "pages":
        documents = stream(kind, task="mixed", seed=seed, split=split)
        while True:
            yield {"text": END_OF_TEXT.join(row["text"] for row in islice(documents, rng.choice(DOCUMENTS_PER_PAGE)))}
    while True:
        item = _draw(rng, task) if kind == "text" else PROMPT_MAKERS[task](rng)
        # A document of several facts has no question; its text decides the split.
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
    if kind == "unpaired_preferences":
        return {"prompt": item.prompt, **_labelled_completion(item, rng, noise), **about}
    if kind == "steps":
        steps = item.steps if rng.random() < 0.4 else sums.flawed_chain(rng, sums.terms_of(item.content))
        return {"prompt": item.prompt, "steps": list(steps), "labels": sums.labels(item.steps, steps), **about}
    return {"prompt": item.prompt, **({"answer": item.answer} if item.answer is not None else {}), **about}


def _preference(item: Item, rng: random.Random, noise: float) -> Row:
    """Two completions that differ in more than fluency; the label is drawn from the Bradley-Terry model.

    Fluency does not affect which completions are paired: the tokenizer was trained on these texts.
    """
    while True:
        a, b = draw_completion(item, rng), draw_completion(item, rng)
        first, second = (score(item.prompt, text, item.gold) for text in (a, b))
        if weighted(first, item.gold) != weighted(second, item.gold):
            break
    gap = first["total"] - second["total"]
    if rng.random() >= _sigmoid(gap / noise):
        a, b, gap = b, a, -gap
    return {"chosen": a, "rejected": b, "gold_margin": round(gap, 6)}


def _labelled_completion(item: Item, rng: random.Random, noise: float) -> Row:
    completion = draw_completion(item, rng)
    return {
        "completion": completion,
        "label": rng.random()
        < _sigmoid((score(item.prompt, completion, item.gold)["total"] - DESIRABLE_THRESHOLD) / noise),
    }


def _sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))


def _check(kind: str, task: str, count: int, split: str, noise: float) -> None:
    if kind not in TASKS_BY_KIND:
        raise ConfigError(f"world kind={kind}: expected one of {', '.join(TASKS_BY_KIND)}")
    if task not in TASKS_BY_KIND[kind]:
        raise ConfigError(
            f"world task={task}: {kind} is available for {', '.join(TASKS_BY_KIND[kind])}; name one of these"
        )
    if split not in get_args(Split):
        raise ConfigError(f"world split={split}: expected train or eval")
    if count < 0:
        raise ConfigError(f"world count={count}: expected a number of rows, 0 or more")
    if not 0 < noise < math.inf:
        raise ConfigError(f"world noise={noise}: expected a finite number above 0; try noise={NOISE}")
