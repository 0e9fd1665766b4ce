"""The `selection` group: which of a prompt's completions become rows of a data file, and what kind of rows.

Pure: answers in, rows out. Rows carry the columns of their prompt, so that what is made here can be checked, scored or
sampled from again. Leaves out files and models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from annotated_types import MinLen

from postrain.data.layouts import LABEL_LIKE_COLUMNS, PARTS
from postrain.errors import ConfigError
from postrain.rollout.revise import Revision, preferences
from postrain.types import Count, Positive

Row = dict[str, Any]

# Rewards are float32: a weighted sum that is 1 on paper may miss it by so much.
ROUNDING = 1e-6
# Columns that a reader would take for a part of the row (data/layouts.py); `text` is the least of them, and `input` has
# been used where it is text.
LAYOUT_COLUMNS = frozenset({name for part, names in PARTS.items() if part not in ("text", "input") for name in names})
LAYOUT_COLUMNS |= frozenset(LABEL_LIKE_COLUMNS)


@dataclass(frozen=True, kw_only=True)
class PromptCompletions:
    """A prompt and what a model wrote, in the order it was sampled."""

    row: int
    """Number of the prompt in its source."""
    prompt: str
    columns: Mapping[str, Any]
    """The other columns of the prompt; its turns, as `messages`, where there are several."""
    completions: tuple[str, ...]
    rewards: tuple[float | None, ...]
    """None where a completion cannot be scored."""
    finished: tuple[bool, ...]
    """False where a completion was cut at rollout.max_new_tokens."""
    gold: tuple[float | None, ...]
    """The data's own gold score; None where nobody knows."""
    greedy: float | None
    """Reward of the greedy completion, where one was asked for."""
    revisions: tuple[Revision, ...] = ()
    """Of the completions that came to an end, in order, where they were asked for."""


class Selection(Protocol):
    """Makes rows of a prompt's completions."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        """The rows to keep, of the scored completions that came to an end by themselves."""
        ...


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Demonstrations: the best completions of each prompt."""

    count: Count | None = None
    """At most so many of each prompt; null is all of them."""
    at_least: float | None = None
    """The reward a completion has to reach; null is any."""
    unique: bool = True
    """Of completions that say the same, one."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        """The best first; of equal ones the first that was sampled."""
        kept = [(said, paid) for said, paid in _ranked(answers) if reaches(paid, self.at_least)]
        if self.unique:
            first: dict[str, tuple[str, float]] = {}
            for said, paid in kept:
                first.setdefault(said.strip(), (said, paid))
            kept = list(first.values())
        return [_demonstration(answers, said, paid) for said, paid in kept[: self.count]]


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """Pairs: the best completion of each prompt over the worst."""

    margin: Positive = 0.1
    """How much more reward the better one must have."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        ranked = _ranked(answers)
        if not ranked or ranked[0][1] - ranked[-1][1] < self.margin - ROUNDING:
            return []
        (chosen, most), (rejected, least) = ranked[0], ranked[-1]
        if chosen.strip() == rejected.strip():
            return []
        prompt = answers.columns.get("messages", answers.prompt)
        margin = round(most - least, 6)
        return [{"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin, **_columns_of(answers)}]


PRINCIPLES = (
    "The reply helps with what was asked, and with that alone.",
    "The reply is polite and takes the person who asks seriously.",
    "The reply is honest and claims nothing that its writer cannot know.",
    "The reply is as short as it can be without leaving out what matters.",
)


@dataclass(frozen=True, kw_only=True)
class RevisionPairs:
    """Pairs: what a completion became when the model criticised and rewrote it, over the completion. No reward."""

    principles: Annotated[tuple[str, ...], MinLen(1)] = PRINCIPLES
    """What makes a reply good, a sentence each. One is drawn for each completion, and the model asked where the reply
    falls short of it."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        if len(answers.revisions) != sum(answers.finished):
            raise ConfigError("selection: these completions were sampled without revising them; start a new generation")
        return preferences(answers.revisions, [_columns_of(answers)] * len(answers.revisions))


@dataclass(frozen=True, kw_only=True)
class NoRows:
    """No rows: the completions are measured only."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        return []


def reaches(reward: float, least: float | None) -> bool:
    """True where a reward is at least so much, but for rounding."""
    return least is None or reward >= least - ROUNDING


def _ranked(answers: PromptCompletions) -> list[tuple[str, float]]:
    """Usable completions and their rewards, the best first."""
    found = zip(answers.completions, answers.rewards, answers.finished, strict=True)
    usable = [(said, paid) for said, paid, finished in found if finished and paid is not None]
    return sorted(usable, key=lambda pair: -pair[1])


def _demonstration(answers: PromptCompletions, said: str, paid: float) -> Row:
    about = {"reward": round(paid, 6), **_columns_of(answers)}
    turns = answers.columns.get("messages")
    if turns and turns[-1]["role"] == "assistant":
        # What the prompt has begun is continued, not learned.
        return {"prompt": turns, "completion": said, **about}
    if turns:
        return {"messages": [*turns, {"role": "assistant", "content": said}], **about}
    return {"prompt": answers.prompt, "completion": said, **about}


def _columns_of(answers: PromptCompletions) -> Row:
    """What a row says besides prompt and completion: where the prompt stood, and its columns."""
    others = {name: value for name, value in answers.columns.items() if name not in LAYOUT_COLUMNS}
    return {"row": answers.row, **others}
