"""A reward, or a preference, from any Python function with TRL's signature,

    def reward(prompts, completions, **columns) -> list[float | None]

given as a dotted path or as `file.py:name`; it may be `async def`. An error in the function is a one-line ConfigError
with its file and line. A function that names one of `SAMPLED_COLUMNS` (base.py) receives that too. Leaves out
chat-message completions: a reward receives text.

Axes: B completions or comparisons.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from postrain.errors import ConfigError, Interrupted, MissingColumn
from postrain.formatting import available_columns
from postrain.rewards.base import SAMPLED_COLUMNS, Columns, Texts, none_to_nan
from postrain.rewards.calls import Calls
from postrain.rewards.user_code import (
    Arguments,
    FunctionPath,
    TimedOut,
    UserCodeErrors,
    load_function,
    source_location,
)
from postrain.types import Positive, RewardBatch, Size, Workers

ANSWER = "postrain.rewards.text.answer"
DEFAULT = "; reward=answer is the default of GRPO, RLOO and REINFORCE"
# Rewards are float32.
LARGEST = float(torch.finfo(torch.float32).max)


@dataclass(kw_only=True, eq=False)
class Function:
    """The reward that `function` returns."""

    function: FunctionPath
    """`package.module.name`, or `path/to/file.py:name`."""
    arguments: Arguments = field(default_factory=dict)
    """Further keyword arguments of the function."""
    timeout: Positive | None = None
    """Time limit of a call in seconds; null is no limit. The completions of a call that exceeds it are unscorable; the
    run ends if no call was ever faster."""
    batch_size: Size | None = None
    """Completions per call; null is all of a rollout."""
    workers: Workers = 8
    """Calls of an `async def` function at a time, with `batch_size`. Other functions are called one by one."""
    call: Callable[..., Any] = field(init=False, repr=False)
    answered: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        self.call = load_function(self.function, key="reward.function")

    @classmethod
    def of(cls, call: Callable[..., Any]) -> Self:
        """A Python function as a reward. Raises ConfigError if it is not callable."""
        if not callable(call):
            raise ConfigError(
                f"reward: expected a function of (prompts, completions, **columns), got {preview(call)}; a reward "
                "model is postrain.rewards.reward_model.OutcomeRewardModel(path=RUN)"
            )
        made = cls.__new__(cls)
        name, file = getattr(call, "__name__", type(call).__name__), source_location(call)[0]
        # A resumed run can import it, unless it is a lambda, a nested function, or defined in a notebook.
        found = Path(file).is_file() and getattr(call, "__qualname__", "") == name != "<lambda>"
        made.function, made.arguments, made.call = f"{file}:{name}" if found else name, {}, call
        return made

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], columns: Columns) -> RewardBatch:
        values = self._call_checked(prompts, completions, columns)
        scored = tuple(self._number(value, index, prompts, columns) for index, value in enumerate(values))
        return RewardBatch(
            none_to_nan(scored), {self.function.rpartition(":" if ":" in self.function else ".")[2]: scored}
        )

    def __str__(self) -> str:
        file, line = source_location(self.call)
        return f"reward function {self.function} ({file}:{line})"

    @property
    def reads(self) -> frozenset[str]:
        """See `columns_read`."""
        try:
            parameters = inspect.signature(self.call).parameters
        except ValueError:
            return frozenset()
        return frozenset(SAMPLED_COLUMNS).intersection(parameters).difference(self.arguments)

    def _call_checked(self, prompts: Sequence[str], completions: Sequence[str], columns: Columns) -> list[Any]:
        keywords = self._select_keywords(prompts, completions, columns)
        file, _ = source_location(self.call)
        size = self.batch_size or max(1, len(prompts))
        slices = [slice(start, start + size) for start in range(0, len(prompts), size)] or [slice(0, 0)]
        locate = partial(self._failing_prompt, keywords, prompts, columns)
        with UserCodeErrors(f"reward function {self.function} raised", file, locate):
            found = self._calls([self._part(keywords, own) for own in slices])
        late = [outcome for outcome in found if isinstance(outcome, TimedOut)]
        self.answered |= len(late) < len(found)
        if late and not self.answered:
            raise late[0]
        values: list[Any] = []
        for own, outcome in zip(slices, found, strict=True):
            count = len(prompts[own])
            values += [None] * count if isinstance(outcome, TimedOut) else self._listed(outcome, count)
        if late:
            lost = sum(len(prompts[own]) for own, one in zip(slices, found, strict=True) if isinstance(one, TimedOut))
            print(f"warning: {lost} of {len(prompts)} completions not scored: {late[0]}", file=sys.stderr)
        return values

    def _listed(self, values: Any, count: int) -> list[Any]:
        """The values that a call returned for `count` completions."""
        listed = values.tolist() if hasattr(values, "tolist") else values
        if not isinstance(listed, Sequence) or isinstance(listed, str | bytes):
            raise ConfigError(
                f"{self}: expected a list of numbers (or None), one per completion, got {preview(values)}"
            )
        if len(listed) != count:
            raise ConfigError(f"{self}: returned {len(listed)} rewards for {count} completions")
        return list(listed)

    @cached_property
    def _calls(self) -> Calls:
        return Calls(self.call, f"reward function {self.function}", self.timeout, self.workers)

    def _part(self, keywords: Mapping[str, Any], own: slice) -> dict[str, Any]:
        """The keyword arguments for some of the completions."""
        return {name: value if name in self.arguments else value[own] for name, value in keywords.items()}

    def _failing_prompt(self, keywords: Mapping[str, Any], prompts: Sequence[str], columns: Columns) -> str:
        """The first prompt on which the function raises alone, after it has raised on a batch."""
        for index in range(len(prompts)):
            try:
                self._calls([self._part(keywords, slice(index, index + 1))])
            except Interrupted:
                raise
            except BaseException:
                return f" on {row_label(index, prompts, columns)}"
        return " on this batch, though on none of its prompts alone"

    def _select_keywords(self, prompts: Sequence[str], completions: Sequence[str], columns: Columns) -> dict[str, Any]:
        """The prompts, completions, columns (as lists) and fixed arguments that the function accepts."""
        names = dict.fromkeys(name for row in columns for name in row)
        offered: dict[str, Any] = {name: [row.get(name) for row in columns] for name in names}
        offered |= {"prompts": list(prompts), "completions": list(completions), **self.arguments}
        try:
            parameters = inspect.signature(self.call).parameters.values()
        except ValueError:
            raise ConfigError(f"{self}: has no readable signature; wrap it in a Python function") from None
        wanted = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        missing = [p.name for p in wanted if p.default is p.empty and p.name not in offered]
        if sampled := [name for name in missing if name in SAMPLED_COLUMNS]:
            raise ConfigError(f"{self}: needs {', '.join(sampled)}, known only of completions sampled in this run")
        if missing:
            keys = " ".join(f"data.columns.{name}=NAME" for name in missing)
            raise MissingColumn(
                f"{self}: needs {', '.join(missing)}, and the prompts have {available_columns(names)}; map a column "
                f"of the data with {keys}, set reward.arguments, or choose "
                f"another reward=OPTION{DEFAULT if self.function == ANSWER else ''}"
            )
        unused = [name for name in self.arguments if name not in {p.name for p in wanted}]
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            return offered
        if unused:
            raise ConfigError(f"{self}: takes no argument {', '.join(unused)} (reward.arguments)")
        return {p.name: offered[p.name] for p in wanted if p.name in offered}

    def _number(self, value: Any, index: int, prompts: Sequence[str], columns: Columns) -> float | None:
        if value is None:
            return None
        number = scalar(value)
        if not is_finite(number):
            raise ConfigError(
                f"{self}: returned {preview(value)} for {row_label(index, prompts, columns)}; expected a finite "
                "number, or None for a completion it cannot score"
            )
        return float(number)


def scalar(value: Any) -> Any:
    """A number of NumPy, torch or `decimal` as Python's; other values unchanged."""
    if isinstance(value, Decimal):
        return float(value)
    return value.item() if getattr(value, "ndim", None) == 0 else value


def is_finite(value: Any) -> bool:
    """Whether a value is a finite number in float32."""
    if not isinstance(value, Real):
        return False
    number: Any = value
    # math.isfinite raises for integers beyond the range of floats.
    return bool(abs(number) <= LARGEST)


def preview(value: Any) -> str:
    """The first characters of a value, for an error message."""
    try:
        return " ".join(repr(value).split())[:80]
    except ValueError:
        return "a number of too many digits to print"


def row_label(index: int, prompts: Sequence[str], columns: Columns) -> str:
    """The name of a prompt in an error message."""
    row = f"row {columns[index]['row']}, " if "row" in columns[index] else ""
    return f"{row}prompt {prompts[index][:60]!r}"


@dataclass(kw_only=True, eq=False)
class PairwiseFunction:
    """The preference that function(prompts, first, second, **columns) -> list[float | None] returns."""

    function: FunctionPath
    """`package.module.name`, or `path/to/file.py:name`."""
    arguments: Arguments = field(default_factory=dict)
    """Further keyword arguments of the function."""
    timeout: Positive | None = None
    """Time limit in seconds of a call, which compares a whole batch; null is no limit."""

    def __post_init__(self) -> None:
        self.call = Function(function=self.function, arguments=self.arguments, timeout=self.timeout)

    def to(self, device: torch.device | str) -> None:
        """Nothing to move."""

    def compare(self, prompts: Texts, first: Texts, second: Texts, columns: Columns) -> Tensor:
        """See `PreferenceModel.compare`. Raises ConfigError for values that are not probabilities."""
        compared = [
            {**row, "first": one, "second": other} for row, one, other in zip(columns, first, second, strict=True)
        ]
        wins_B = self.call(prompts, first, compared).total_B
        wrong = ((wins_B < 0) | (wins_B > 1)).nonzero()
        if len(wrong):
            raise ConfigError(
                f"{self.call}: returned {float(wins_B[wrong[0, 0]]):g}, and a preference is a probability; expected a "
                "number from 0 (the second is preferred) to 1 (the first)"
            )
        return wins_B
