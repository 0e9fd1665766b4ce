"""The `selection` group: selects completions for a data file and builds its rows (rejection sampling, pairs).

Pure functions of completions. Rows keep the columns of their prompt, so that they can be verified, scored or sampled
again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from postrain.data.layouts import LABEL_LIKE_COLUMNS, PARTS
from postrain.errors import ConfigError
from postrain.evaluation.estimate import ROUNDING, reaches
from postrain.rollout.revise import Revision, preferences
from postrain.types import Count, Positive

Row = dict[str, Any]

# Columns that data/layouts.py would read as a part of the row. `text` and `input` are kept: `text` has the lowest
# precedence, and `input` is already part of the prompt.
LAYOUT_COLUMNS = frozenset({name for part, names in PARTS.items() if part not in ("text", "input") for name in names})
LAYOUT_COLUMNS |= frozenset(LABEL_LIKE_COLUMNS)
# The layouts leave `tool_calls` beside `tools` and an answer to rewards.
TOOL_COLUMNS = ("tools", "tool_calls")


@dataclass(frozen=True, kw_only=True)
class PromptCompletions:
    """A prompt with its completions, in the order of sampling."""

    row: int
    """Row number of the prompt in its source."""
    prompt: str
    columns: Mapping[str, Any]
    """The other columns of the prompt; `messages` holds its turns if there are several."""
    completions: tuple[str, ...]
    rewards: tuple[float | None, ...]
    """None for completions that cannot be scored."""
    finished: tuple[bool, ...]
    """False for completions truncated at rollout.max_new_tokens."""
    gold: tuple[float | None, ...]
    """The data's gold score; None if it has none."""
    greedy: float | None
    """Reward of the greedy completion, if enabled."""
    revisions: tuple[Revision, ...] = ()
    """Revisions of the finished completions, in order, if enabled."""
    win_rates: tuple[float | None, ...] = ()
    """Mean probability with which each completion beats the others, if they are compared."""


class Selection(Protocol):
    """Selects rows from a prompt's completions."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        """The selected rows, from completions that are scored and not truncated."""
        ...


@dataclass(frozen=True, kw_only=True)
class TopK:
    """Demonstrations from the best completions of each prompt (rejection sampling)."""

    count: Count | None = None
    """Maximum number of completions per prompt; null is all."""
    min_reward: float | None = None
    """Minimum reward of a completion; null is no minimum."""
    unique: bool = True
    """Drop duplicate completions of a prompt."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        """Best first; ties in the order of sampling."""
        kept = [(text, reward) for text, reward in _ranked(answers) if reaches(reward, self.min_reward)]
        if self.unique:
            first: dict[str, tuple[str, float]] = {}
            for text, reward in kept:
                first.setdefault(text.strip(), (text, reward))
            kept = list(first.values())
        return [_demonstration(answers, text, reward=round(reward, 6)) for text, reward in kept[: self.count]]


@dataclass(frozen=True, kw_only=True)
class PreferencePairs:
    """Preference pairs: the best completion of each prompt as chosen, the worst as rejected."""

    margin: Positive = 0.1
    """Minimum difference of the two rewards."""

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


@dataclass(frozen=True, kw_only=True)
class AIPreferences:
    """Preference pairs of constitutional AI: the completion that the critic prefers by the principles as chosen, the
    one that it prefers least as rejected. Needs no reward; one that compares two completions replaces the critic."""

    margin: Positive = 0.1
    """Minimum difference of the two mean win probabilities."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        if not answers.win_rates:
            raise ConfigError("selection: these completions were not compared; start a new generation")
        return PreferencePairs(margin=self.margin)(replace(answers, rewards=answers.win_rates))


@dataclass(frozen=True, kw_only=True)
class RevisionPairs:
    """Preference pairs of constitutional AI: the critic's revision of a completion as chosen, the original as rejected.
    Needs no reward."""

    rounds: Count = 1
    """Revisions of a completion, one after the other, each by a principle that is drawn for it."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        return preferences(_revisions_of(answers), [_columns_of(answers)] * len(answers.revisions))


@dataclass(frozen=True, kw_only=True)
class Revised(RevisionPairs):
    """Demonstrations of constitutional AI: every completion, revised where the critic finds fault with it. A completion
    that is criticised and not revised is left out."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        return [
            {**_demonstration(answers, one.revised), "critique": one.critique, "principle": one.principle}
            for one in _revisions_of(answers)
            if one.revised != one.original or not one.critique
        ]


def _revisions_of(answers: PromptCompletions) -> tuple[Revision, ...]:
    if len(answers.revisions) != sum(answers.finished):
        raise ConfigError("selection: these completions have no revisions; start a new generation")
    return answers.revisions


@dataclass(frozen=True, kw_only=True)
class NoRows:
    """Selects no rows: statistics only."""

    def __call__(self, answers: PromptCompletions) -> list[Row]:
        return []


def _ranked(answers: PromptCompletions) -> list[tuple[str, float]]:
    """Scored, finished completions and their rewards, best first."""
    found = zip(answers.completions, answers.rewards, answers.finished, strict=True)
    usable = [(text, reward) for text, reward, finished in found if finished and reward is not None]
    return sorted(usable, key=lambda pair: -pair[1])


def _demonstration(answers: PromptCompletions, text: str, **known: Any) -> Row:
    about = {**known, **_columns_of(answers)}
    turns = answers.columns.get("messages")
    if turns and turns[-1]["role"] == "assistant":
        # The prompt ends in an unfinished assistant turn: only its continuation is learned.
        return {"prompt": turns, "completion": text, **about}
    if turns:
        return {"messages": [*turns, {"role": "assistant", "content": text}], **about}
    return {"prompt": answers.prompt, "completion": text, **about}


def _columns_of(answers: PromptCompletions) -> Row:
    """The prompt's row number and other columns, with its tools and the calls that rewards expect."""
    kept = TOOL_COLUMNS if answers.columns.get("tools") else ()
    others = {name: value for name, value in answers.columns.items() if name not in LAYOUT_COLUMNS or name in kept}
    return {"row": answers.row, **others}
