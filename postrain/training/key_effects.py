"""The keys in which two configs differ, and what each of them changes in an update.

Config A is the baseline. For each key, A with the value of B is trained for one update, and compared with A. A key
without an effect alone may have one together with others, such as an estimator whose coefficient is 0: where the keys
with an effect do not make up the whole difference, each other key is set back in B.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from postrain.config.schema import TARGET
from postrain.errors import ConfigError
from postrain.formatting import shortened
from postrain.training.first_update import Gap, UpdateTrace

Plain = Mapping[str, Any]
Trace = Callable[[Plain], UpdateTrace]
"""Trains one update of a config. Raises ConfigError for a config that cannot run."""

ROUNDING = 1e-5
"""Relative differences of gradients below this are due to the order of summation in float32."""
STEP_ROUNDING = 1e-3
"""The same for steps: AdamW divides each gradient by its size, the smallest ones too."""
LEFT_OUT = ("paths", "name", "dialect", "report", "logger", "debug", "resume", "fork", "allow_change")
"""Keys that name or place a run."""
AROUND = ("evaluation", "early_stop", "callbacks", "trainer.checkpoint", "trainer.check_memory", "trainer.profiler")
"""Beginnings of keys that are no part of an update."""


@dataclass(frozen=True)
class Difference:
    """A key with two values."""

    key: str
    a: Any
    b: Any

    @property
    def is_around(self) -> bool:
        """Whether the key has no part in an update."""
        return self.key.startswith(AROUND)

    def shown(self) -> tuple[str, str]:
        """Both values as text; of components of different classes, their names."""
        return _text(self.a), _text(self.b)


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and TARGET in value:
        return str(value[TARGET]).rpartition(".")[2]
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return shortened(text, 40)


def differences(a: Plain, b: Plain, path: str = "") -> Iterator[Difference]:
    """The keys with different values. A component of another class counts as one key."""
    for name in dict.fromkeys((*a, *b)):
        key, one, other = f"{path}{name}", a.get(name), b.get(name)
        if one == other or (not path and name in LEFT_OUT):
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping) and one.get(TARGET) == other.get(TARGET):
            yield from differences(one, other, f"{key}.")
        else:
            yield Difference(key, one, other)


def with_value(config: Plain, key: str, value: Any) -> dict[str, Any]:
    """A copy of the config with another value of a dotted key."""
    first, _, rest = key.partition(".")
    return {**config, first: with_value(config.get(first) or {}, rest, value) if rest else value}


def with_key_of(config: Plain, key: str, source: Plain) -> dict[str, Any]:
    """A copy of the config with the value that another one has for a dotted key; without the key if that has none."""
    first, _, rest = key.partition(".")
    if rest:
        return {**config, first: with_key_of(config[first], rest, source[first])}
    if first in source:
        return {**config, first: source[first]}
    return {name: value for name, value in config.items() if name != first}


@dataclass(frozen=True)
class Effect:
    """What a key changes in one update of A."""

    difference: Difference
    acts_on: str
    gradient: Gap | None = None
    """Of the first optimizer step; None if it cannot be compared."""
    step: Gap | None = None
    """Of the change of the weights by the update."""
    loss: float | None = None
    """The loss with the value of B."""

    @property
    def rank(self) -> tuple[float, float, str]:
        """For sorting: the largest change first."""
        gradient, step = (-one.relative if one else 0.0 for one in (self.gradient, self.step))
        return gradient, step, self.difference.key


def effect(difference: Difference, base: UpdateTrace, found: UpdateTrace) -> Effect:
    """The effect of a key from the updates without and with its change."""
    gradient, step = Gap.between(base.gradient, found.gradient), Gap.between(base.step, found.step)
    return Effect(difference, _acts_on(base, found, gradient, step), gradient, step, found.loss)


NOTHING = "nothing in this update"


def _acts_on(base: UpdateTrace, found: UpdateTrace, gradient: Gap | None, step: Gap | None) -> str:
    if gradient is None or step is None:
        return "the trained parameters"
    if found.rows != base.rows:
        return "the rows"
    if found.samples != base.samples:
        return "the samples"
    if gradient.relative > ROUNDING:
        return "the loss" if found.first_step == base.first_step else "the mini-batches"
    if step.relative > STEP_ROUNDING:
        return "the later steps" if max(base.optimizer_steps, found.optimizer_steps) > 1 else "the optimizer step"
    return NOTHING


def same(one: UpdateTrace, other: UpdateTrace) -> bool:
    """Whether two updates agree up to rounding."""
    gradient, step = Gap.between(one.gradient, other.gradient), Gap.between(one.step, other.step)
    if gradient is None or step is None:
        return False
    return gradient.relative <= ROUNDING and step.relative <= STEP_ROUNDING


def key_effects(a: Plain, b: Plain, found: Sequence[Difference], trace: Trace, base: UpdateTrace) -> list[Effect]:
    """The effect of each key, the largest first; `base` is the update of A."""
    effects = []
    for each in found:
        try:
            effects.append(effect(each, base, trace(with_key_of(a, each.key, b))))
        except ConfigError as error:
            effects.append(Effect(each, f"only with others: {error}"))
    return sorted(together(a, b, effects, trace), key=lambda one: one.rank)


def together(a: Plain, b: Plain, effects: Sequence[Effect], trace: Trace) -> list[Effect]:
    """The effects, where keys without an effect alone are tested together with the others."""
    alone = [one for one in effects if one.acts_on != NOTHING and one.step is not None]
    idle = [one.difference for one in effects if one.acts_on == NOTHING]
    if not idle:
        return list(effects)
    united = a
    for one in alone:
        united = with_key_of(united, one.difference.key, b)
    try:
        whole = trace(b)
        if same(trace(united), whole):
            return list(effects)
    except ConfigError:
        return list(effects)
    matters = {each.key for each in idle if not _is_same(with_key_of(b, each.key, a), whole, trace)}
    return [
        replace(one, acts_on="only together with others") if one.difference.key in matters else one for one in effects
    ]


def _is_same(config: Plain, whole: UpdateTrace, trace: Trace) -> bool:
    try:
        return same(trace(config), whole)
    except ConfigError:
        return False
