"""Curricula of prompts: a pass rate for every prompt, and the prompts of an update chosen by it.

    pass rate = passed completions / completions of a prompt, where earlier visits count `decay` as much as the last

A prompt is known by the index of its item in the training data. All ranks hold the same table, which the checkpoint
saves: the prompts of an update depend on the seed, the update and the table only. An update changes a copy, which
replaces the table at its end: an update that fails is repeated with the same prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Self

import torch

from postrain.config.schema import Section
from postrain.data.encode import collate
from postrain.data.interleave import Interleaving
from postrain.data.kinds.prompt import Prompts
from postrain.data.schedule import Stream, epoch_order
from postrain.errors import ConfigError
from postrain.hardware import collectives
from postrain.methods.policy_gradient import PolicyGradient
from postrain.rollout.collect import Rollouts
from postrain.seeds import generator
from postrain.types import Batch, Count, Fraction, Mean, Size

BINS = 5


@dataclass(frozen=True, kw_only=True)
class Curriculum(Section):
    """Which prompts an update trains on. By default all, in the order of the data."""

    window: tuple[Fraction, Fraction] | None = None
    """Skip prompts whose pass rate is known and outside of [low, high], such as [0.1, 0.9]; null disables it."""
    replay: Fraction = 0.0
    """Share of the prompts of an update that is drawn from prompts seen before, with a probability proportional to 1 −
    pass rate; 0 disables it."""
    stages: tuple[Count, ...] = ()
    """Updates from which prompts come from the next source of data.mix: [50] uses the first source for 50 updates, then
    the second one. [] uses all sources with the weights of the mixture."""
    passing_reward: float = 1.0
    """A completion passes with at least this reward, before penalties."""
    decay: Fraction = 0.5
    """Weight of the earlier completions of a prompt in its pass rate at each further visit."""

    @property
    def active(self) -> bool:
        """Whether it changes the prompts of a run."""
        return self.window is not None or self.replay > 0 or bool(self.stages)

    def check(self, sources: int) -> None:
        """Raises ConfigError for settings that contradict each other or the number of sources of the data."""
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ConfigError(f"method.curriculum.window={list(self.window)}: expected low < high")
        if self.stages and (list(self.stages) != sorted(set(self.stages)) or len(self.stages) != sources - 1):
            raise ConfigError(
                f"method.curriculum.stages={list(self.stages)}: the data has {sources} source{'s' * (sources > 1)}; "
                f"expected {sources - 1} increasing update{'s' * (sources != 2)}, from which each further one is used"
            )


@dataclass
class PassRates:
    """The pass rates of the prompts seen so far, and the position in the order of each source."""

    counts: dict[int, tuple[float, float]] = field(default_factory=dict)
    """Passed completions and completions of each item, with decay."""
    positions: dict[int, int] = field(default_factory=dict)
    drawn: int = 0
    """Items drawn from a mixture without stages, replay left out."""

    def copy(self) -> Self:
        """A table that changes independently."""
        return type(self)(dict(self.counts), dict(self.positions), self.drawn)

    def rate(self, item: int) -> float | None:
        """The pass rate; None for an item without scored completions."""
        passed, count = self.counts.get(item, (0.0, 0.0))
        return passed / count if count else None

    def add(self, item: int, passed: float, count: float, decay: float) -> None:
        """Counts the completions of one more visit."""
        before = self.counts.get(item, (0.0, 0.0))
        self.counts[item] = (decay * before[0] + passed, decay * before[1] + count)

    def within(self, item: int, window: tuple[float, float] | None) -> bool:
        """Whether the pass rate of an item is unknown or in the window."""
        rate = self.rate(item)
        return window is None or rate is None or window[0] <= rate <= window[1]

    def histogram(self) -> dict[str, Mean]:
        """Share of the prompts seen in each of five intervals of the pass rate, and its mean."""
        rates = [rate for item in self.counts if (rate := self.rate(item)) is not None]
        bins = [min(int(rate * BINS), BINS - 1) for rate in rates]
        shares = {
            f"pass_rate/{100 * k // BINS}_{100 * (k + 1) // BINS}": Mean(bins.count(k), len(bins)) for k in range(BINS)
        }
        return {"pass_rate/mean": Mean(sum(rates), len(rates)), **shares}

    def state(self) -> dict[str, Any]:
        """The table as plain containers."""
        counts = {item: list(one) for item, one in self.counts.items()}
        return {"counts": counts, "positions": dict(self.positions), "drawn": self.drawn}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The table of `state`."""
        counts = {item: (one[0], one[1]) for item, one in state["counts"].items()}
        return cls(counts, dict(state["positions"]), state.get("drawn", 0))


def draw_prompts(
    curriculum: Curriculum,
    table: PassRates,
    *,
    items: int,
    streams: Sequence[Stream],
    update: int,
    count: int,
    seed: int,
) -> list[int]:
    """The items of an update, over all ranks, of `items` in `streams` (none: one source); moves the table's
    position."""
    sources = [range(stream.start, stream.start + stream.count) for stream in streams] or [range(items)]
    stage = sum(update >= first for first in curriculum.stages)
    mixed = len(sources) > 1 and not curriculum.stages
    known = range(items) if mixed else sources[stage]
    drawn = _replayed(curriculum, table, known, round(curriculum.replay * count), generator(seed, "replay", update))
    missing = {stage: count - len(drawn)}
    if mixed:
        rates = tuple(stream.rate for stream in streams)
        missing = Counter(Interleaving(rates).sources(table.drawn, count - len(drawn)))
        table.drawn += count - len(drawn)
    for number in sorted(missing):
        drawn += _in_order(curriculum, table, sources[number], missing[number], number, seed)
    return [drawn[at] for at in torch.randperm(count, generator=generator(seed, "curriculum", update)).tolist()]


def _replayed(curriculum: Curriculum, table: PassRates, source: range, count: int, draws: torch.Generator) -> list[int]:
    """`count` known items of the source, or as many as there are, drawn with weights of 1 − pass rate."""
    weights = {item: 1 - rate for item in sorted(table.counts) if (rate := table.rate(item)) is not None}
    known = [item for item, weight in weights.items() if weight > 0 and item in source]
    known = [item for item in known if table.within(item, curriculum.window)]
    if not (count := min(count, len(known))):
        return []
    chances = torch.tensor([weights[item] for item in known], dtype=torch.float64)
    return [known[at] for at in torch.multinomial(chances, count, generator=draws).tolist()]


def _in_order(curriculum: Curriculum, table: PassRates, source: range, count: int, stage: int, seed: int) -> list[int]:
    """The next `count` items of the source's epochs that are in the window; any, if none is."""
    inside = torch.ones(len(source), dtype=torch.bool)
    known = [item for item in table.counts if item in source]
    inside[[item - source.start for item in known if not table.within(item, curriculum.window)]] = False
    inside |= ~inside.any()
    position, drawn = table.positions.get(stage, 0), []
    while len(drawn) < count:
        epoch, at = divmod(position, len(source))
        order = epoch_order(len(source), seed, epoch, stage)[at:]
        places = inside[order].nonzero().flatten()[: count - len(drawn)]
        drawn += [source[item] for item in order[places].tolist()]
        position += int(places[-1]) + 1 if len(drawn) == count else len(order)
    table.positions[stage] = position
    return drawn


class CurriculumPrompts(PolicyGradient):
    """Chooses the prompts of an update, and keeps their pass rates."""

    group_size: Size = 8
    """Completions of each prompt; method.batch_size counts prompts."""
    curriculum: Curriculum = field(default_factory=Curriculum)
    """Which prompts an update trains on, by the pass rate of each so far: window, replay, stages. By default all, in
    the order of the data."""

    def __post_init__(self, *components: Any) -> None:
        # Lightning's load_from_checkpoint passes settings as plain containers.
        if isinstance(self.curriculum, Mapping):
            self.curriculum = Curriculum(**self.curriculum)
        super().__post_init__(*components)

    def check(self) -> None:
        super().check()
        for name in () if self.curriculum.active else ("passing_reward", "decay"):
            if (value := getattr(self.curriculum, name)) != getattr(Curriculum, name):
                raise ConfigError(
                    f"method.curriculum.{name}={value}: has no effect without window, replay or stages; leave it out"
                )

    def on_model_attached(self) -> None:
        super().on_model_attached()
        self.pass_rates = PassRates()
        self.next_pass_rates = self.pass_rates.copy()

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if not self.curriculum.active:
            return
        self.curriculum.check(max(1, len(self.datamodule.train_dataloader().streams)))
        if self.overlap:
            raise ConfigError("method.curriculum: rollout.overlap=1 samples prompts before pass rates are known; use 0")

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.next_pass_rates = self.pass_rates.copy()
        super().training_step(batch, batch_idx)
        self.pass_rates = self.next_pass_rates

    def curriculum_prompts(self) -> Prompts:
        """This rank's share of the prompts that the curriculum draws for this update."""
        data = self.datamodule.train_dataloader()
        self.drawn_items = draw_prompts(
            self.curriculum,
            self.next_pass_rates,
            items=len(data.items),
            streams=data.streams,
            update=self.counters.updates,
            count=self.items_per_update(),
            seed=self.components.seed,
        )
        prompts = collate([data.items[item] for item in self.drawn_items[data.rank :: data.ranks]])
        assert isinstance(prompts, Prompts)
        self.current_rows = prompts.row_ids
        return prompts.to(self.device)

    def count_passes(self, rollouts: Rollouts) -> None:
        """Adds the completions of this update, of all ranks, to the pass rates."""
        reward_PG = rollouts.reward_B.view(-1, self.group_size)
        passed_P = (reward_PG >= self.curriculum.passing_reward).sum(1).tolist()
        scored_P = (~reward_PG.isnan()).sum(1).tolist()
        items = self.drawn_items[collectives.rank() :: collectives.world_size()][: len(passed_P)]
        parts = collectives.gather(list(zip(items, passed_P, scored_P, strict=True)))
        for item, passed, scored in sorted(chain.from_iterable(parts)):
            self.next_pass_rates.add(item, passed, scored, self.curriculum.decay)
        if collectives.rank() == 0:
            self.accumulate(self.next_pass_rates.histogram())

    def state(self) -> dict[str, Any]:
        return {**super().state(), **({"pass_rates": self.pass_rates.state()} if self.curriculum.active else {})}

    def load_state(self, state: Mapping[str, Any]) -> None:
        super().load_state(state)
        if "pass_rates" in state:
            self.pass_rates = PassRates.from_state(state["pass_rates"])
